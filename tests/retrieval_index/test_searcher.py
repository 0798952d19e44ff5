"""Asking an opened index: parameters, ranking again, and queries whose lists are too short."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.searcher import Searcher
from tests.retrieval_index.vectors import captions_and_pictures

CAPTIONS, PICTURES = captions_and_pictures(600, 15, 16)
PRODUCTS = PICTURES @ CAPTIONS.T
EXACT = np.argsort(-PRODUCTS, axis=1)


@pytest.fixture(scope="module")
def coarse() -> faiss.Index:
    """Codes of two bytes: far from exact."""
    index = faiss.index_factory(16, "IVF20,PQ2np", faiss.METRIC_INNER_PRODUCT)
    index.train(CAPTIONS)
    index.add(CAPTIONS)
    return index


def test_candidates_are_ranked_again_by_stored_embeddings(coarse: faiss.Index) -> None:
    searcher = Searcher(coarse, {"nprobe": 20, "refine": 60}, lambda rows: CAPTIONS[rows])
    scores, rows = searcher.search(PICTURES, 10)
    np.testing.assert_array_equal(rows, EXACT[:, :10])  # all 600 were candidates
    np.testing.assert_allclose(scores, np.take_along_axis(PRODUCTS, rows, axis=1), atol=1e-6)
    plain = Searcher(coarse, {"nprobe": 20}, lambda rows: CAPTIONS[rows]).search(PICTURES, 10)[1]
    assert (plain != rows).any()


def test_equal_scores_are_ordered_by_row(coarse: faiss.Index) -> None:
    rows = Searcher(coarse, {"nprobe": 20, "refine": 150}, lambda rows: np.ones((len(rows), 16), np.float32)).search(
        PICTURES, 4
    )[1]
    assert rows.tolist() == [[0, 1, 2, 3]] * 15


def test_lists_that_hold_too_few_rows_are_not_the_last_word(coarse: faiss.Index) -> None:
    scores, rows = Searcher(coarse, {"nprobe": 1}, lambda rows: CAPTIONS[rows]).search(PICTURES, 500)
    assert rows.min() >= 0 and all(len(set(found)) == 500 for found in rows.tolist())
    assert np.isfinite(scores).all() and (np.diff(scores, axis=1) <= 0).all()


def test_a_graph_is_asked_with_its_effort() -> None:
    index = faiss.IndexHNSWFlat(16, 4, faiss.METRIC_INNER_PRODUCT)
    index.add(CAPTIONS)

    def found(effort: int) -> float:
        rows = Searcher(index, {"ef_search": effort}, lambda rows: CAPTIONS[rows]).search(PICTURES, 5)[1]
        return float(np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), EXACT[:, :5].tolist(), strict=True)]))

    assert found(400) > found(5)


def test_k_beyond_a_gpus_limit(coarse: faiss.Index) -> None:
    searcher = Searcher(coarse, {"refine": 4}, lambda rows: CAPTIONS[rows], gpu=True)
    searcher.index = type("Large", (), {"ntotal": 10**6})()
    with pytest.raises(
        RetrievalError, match="at most 2048 neighbours. Given: k=600, ranked again from 2400. Allowed: k=512"
    ):
        searcher.search(PICTURES, 600)


def test_lists_on_a_gpu_that_hold_too_few_rows_are_an_error(coarse: faiss.Index) -> None:
    searcher = Searcher(coarse, {}, lambda rows: CAPTIONS[rows], gpu=True)
    searcher.parameters = {"nprobe": 1}
    with pytest.raises(RetrievalError, match="hold fewer captions .*Given: k=500, nprobe 1. .*index.search_device=cpu"):
        searcher.search(PICTURES, 500)


def test_no_queries(coarse: faiss.Index) -> None:
    scores, rows = Searcher(coarse, {"nprobe": 2, "refine": 2}, lambda rows: CAPTIONS[rows]).search(PICTURES[:0], 3)
    assert scores.shape == rows.shape == (0, 3)
