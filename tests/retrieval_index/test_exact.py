"""Exact search by blocks against FAISS and against a plain argsort."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.exact import exact_top_k


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("query_block", "corpus_block"), [(1, 7), (8, 50), (100, 1000)])
def test_equals_faiss_flat(query_block: int, corpus_block: int) -> None:
    corpus, queries = unit(203, 12, 0), unit(37, 12, 1)
    flat = faiss.IndexFlatIP(12)
    flat.add(corpus)
    expected_scores, expected_rows = flat.search(queries, 9)
    shards = [corpus[:100], corpus[100:101], corpus[101:]]
    scores, rows = exact_top_k(queries, shards, 9, query_block=query_block, corpus_block=corpus_block)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert scores.dtype == np.float32 and rows.dtype == np.int64


def test_k_may_be_the_whole_corpus_over_small_shards() -> None:
    corpus, queries = unit(6, 4, 0), unit(3, 4, 1)
    _, rows = exact_top_k(queries, [corpus[:2], corpus[2:4], corpus[4:]], 6, corpus_block=1)
    np.testing.assert_array_equal(rows, np.argsort(-(queries @ corpus.T), axis=1))


def test_equal_scores_come_by_ascending_row() -> None:
    corpus = np.tile(unit(1, 4, 0), (5, 1))
    _, rows = exact_top_k(corpus[:1], [corpus[:2], corpus[2:]], 5, corpus_block=2)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]


def test_half_precision_shards_are_searched_in_single_precision() -> None:
    corpus, queries = unit(50, 8, 0).astype(np.float16), unit(4, 8, 1)
    scores, rows = exact_top_k(queries, [corpus], 3)
    products = queries @ corpus.astype(np.float32).T
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, axis=1), atol=1e-6)


def test_no_queries() -> None:
    scores, rows = exact_top_k(np.empty((0, 4), np.float32), [unit(5, 4, 0)], 2)
    assert scores.shape == rows.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_of_the_corpus(k: int) -> None:
    with pytest.raises(RetrievalError, match=f"Given: k={k}. Allowed: 1 to 5"):
        exact_top_k(unit(1, 4, 0), [unit(5, 4, 0)], k)


def test_queries_of_another_width() -> None:
    with pytest.raises(RetrievalError, match=r"Given: shape \[1, 3\]. Allowed: \[queries, 4\]"):
        exact_top_k(unit(1, 3, 0), [unit(5, 4, 0)], 1)
