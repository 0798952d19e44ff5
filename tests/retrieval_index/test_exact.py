"""Exact search by blocks against FAISS and against a plain argsort."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.exact import ExactSearch
from tests.retrieval_index.vectors import unit


def random_unit(rows: int, width: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, width)))


@pytest.mark.parametrize(("query_block", "corpus_block"), [(1, 7), (8, 50), (100, 1000)])
def test_equals_faiss_flat(query_block: int, corpus_block: int) -> None:
    corpus, queries = random_unit(203, 12, 0), random_unit(37, 12, 1)
    flat = faiss.IndexFlatIP(12)
    flat.add(corpus)
    expected_scores, expected_rows = flat.search(queries, 9)
    shards = [corpus[:100], corpus[100:101], corpus[101:]]
    scores, rows = ExactSearch(shards, query_block=query_block, corpus_block=corpus_block).search(queries, 9)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert scores.dtype == np.float32 and rows.dtype == np.int64


def test_k_may_be_the_whole_corpus_over_small_shards() -> None:
    corpus, queries = random_unit(6, 4, 0), random_unit(3, 4, 1)
    _, rows = ExactSearch([corpus[:2], corpus[2:4], corpus[4:]], corpus_block=1).search(queries, 6)
    np.testing.assert_array_equal(rows, np.argsort(-(queries @ corpus.T), axis=1))


def test_equal_scores_come_by_ascending_row() -> None:
    corpus = np.tile(random_unit(1, 4, 0), (5, 1))
    _, rows = ExactSearch([corpus[:2], corpus[2:]], corpus_block=2).search(corpus[:1], 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]


def test_half_precision_shards_are_searched_in_single_precision() -> None:
    corpus, queries = random_unit(50, 8, 0).astype(np.float16), random_unit(4, 8, 1)
    scores, rows = ExactSearch([corpus]).search(queries, 3)
    products = queries @ corpus.astype(np.float32).T
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, axis=1), atol=1e-6)


def test_no_queries() -> None:
    scores, rows = ExactSearch([random_unit(5, 4, 0)]).search(np.empty((0, 4), np.float32), 2)
    assert scores.shape == rows.shape == (0, 2)


def test_progress_is_told_by_queries() -> None:
    done: list[int] = []
    ExactSearch([random_unit(5, 4, 0)], query_block=3).search(random_unit(7, 4, 1), 1, done.append)
    assert done == [3, 6, 7]


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_of_the_corpus(k: int) -> None:
    with pytest.raises(RetrievalError, match=f"Given: k={k}. Allowed: 1 to 5"):
        ExactSearch([random_unit(5, 4, 0)]).search(random_unit(1, 4, 0), k)


def test_queries_of_another_width() -> None:
    with pytest.raises(RetrievalError, match=r"Given: shape \[1, 3\]. Allowed: \[queries, 4\]"):
        ExactSearch([random_unit(5, 4, 0)]).search(random_unit(1, 3, 0), 1)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    corpus, queries = random_unit(100_000, 64, 0), random_unit(500, 64, 1)
    scores, rows = ExactSearch([corpus[:70_000], corpus[70_000:]], device="cuda").search(queries, 10)
    expected_scores, expected_rows = ExactSearch([corpus]).search(queries, 10)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert (rows == expected_rows).mean() > 0.999  # the rest are scores that agree to the last bits
