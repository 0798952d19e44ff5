"""Recall against exact search, the parameters that reach it, and what is said where none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_index.approximate import make_index
from retrieval_index.engines import LocalEngine
from retrieval_index.errors import RetrievalError
from retrieval_index.manifest import Recall
from retrieval_index.planner import KINDS, choose_plan
from retrieval_index.recall import BelowTarget, Queries, Tuned, exact_neighbours, hits, refuse_below, tune
from retrieval_index.searcher import Searcher
from tests.retrieval_index.vectors import captions_and_pictures, unit, write_vectors

CAPTIONS, PICTURES = captions_and_pictures(4000, 200, 24)


def test_exact_neighbours_against_a_full_sort(tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path, CAPTIONS)
    found = exact_neighbours(vectors, PICTURES, 7, lambda done: None)
    products = PICTURES.astype(np.float64) @ CAPTIONS.astype(np.float64).T
    np.testing.assert_array_equal(found, np.argsort(-products, axis=1)[:, :7])


def test_hits_by_hand() -> None:
    truth = np.array([[1, 2, 3], [4, 5, 6]])
    found = np.array([[3, 9, 1], [7, 8, 9]])
    np.testing.assert_allclose(hits(found, truth, None, 3), [2 / 3, 0])
    # The own row never counts: of query 0 the row 1, of query 1 the row 8.
    np.testing.assert_allclose(hits(found, truth, np.array([1, 8]), 2), [1 / 2, 0])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_target_is_reached_on_queries_that_did_not_choose(tmp_path: Path, kind: str) -> None:
    vectors = write_vectors(tmp_path / "v", CAPTIONS)
    plan = choose_plan(4000, 24, 2**30, kind=kind)
    path = tmp_path / "i/0.faiss"
    path.parent.mkdir()
    make_index(vectors, plan, path, run=LocalEngine().run_parts, report=lambda done: None)
    index = faiss.read_index(str(path))
    truth = exact_neighbours(vectors, PICTURES, 10, lambda done: None)

    def search(queries: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        return Searcher(index, parameters, vectors.take).search(queries, k)[1]

    tuned = tune(search, kind, plan.lists, Queries(PICTURES, "pictures"), truth, 10, 0.9)
    odd = np.arange(200) % 2 == 1
    found = search(PICTURES[odd], 10, tuned.parameters)
    overlap = [len(set(one) & set(other)) / 10 for one, other in zip(found.tolist(), truth[odd].tolist(), strict=True)]
    assert tuned.recall.value == pytest.approx(np.mean(overlap), abs=1e-6) and tuned.recall.value >= 0.9
    assert (tuned.recall.queries, tuned.recall.of, tuned.recall.target) == (100, "pictures", 0.9)
    if kind == "ivf_flat":
        assert 1 < tuned.parameters["nprobe"] < plan.lists


def ladder(costs: dict[int, float]) -> Any:
    """A search whose recall rises with nprobe as told: each query finds that share of rows 0..9."""

    def search(queries: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        share = max(value for nprobe, value in costs.items() if nprobe <= parameters["nprobe"])
        right = round(10 * share)
        return np.tile([*range(right), *range(100, 110 - right)], (len(queries), 1))

    return search


TRUTH = np.tile(np.arange(10), (40, 1))
QUERIES = Queries(unit(np.ones((40, 4))), "pictures")


def test_the_smallest_effort_is_found() -> None:
    tuned = tune(ladder({1: 0.2, 4: 0.5, 11: 1.0}), "ivf_flat", 64, QUERIES, TRUTH, 10, 0.95)
    assert tuned.parameters == {"nprobe": 11} and tuned.recall.value == 1


@pytest.mark.parametrize("kind", ["ivf_flat", "hnsw"])
def test_a_recall_that_stalls_may_rise_again(kind: str) -> None:
    steps = ladder({1: 0.2, 16: 0.8, 600: 1.0})

    def search(queries: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        return steps(queries, k, {"nprobe": next(iter(parameters.values()))})

    tuned = tune(search, kind, 1024, QUERIES, TRUTH, 10, 0.95)
    assert tuned.recall.value == 1 and next(iter(tuned.parameters.values())) in range(600, 640)


def test_a_recall_that_stalls_is_left_for_more_refinement() -> None:
    asked: list[tuple[int, int]] = []
    steps = ladder({1: 0.2, 4: 0.8})

    def search(queries: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        asked.append((parameters.get("refine", 0), parameters["nprobe"]))
        return steps(queries, k, parameters)

    tuned = tune(search, "ivf_sq8", 2**20, QUERIES, TRUTH, 10, 0.95)
    largest = {refine: max(nprobe for other, nprobe in asked if other == refine) for refine, _ in asked}
    assert tuned.recall.value == 0.8 and largest == {0: 8, 2: 8, 4: 2**20}
    with pytest.raises(
        BelowTarget, match=r"0.8000 \(standard error 0.0000\) of 10 neighbours with 20 pictures"
    ) as caught:
        refuse_below(tuned, "IVF-SQ8", None, "index.kind=ivf_flat")
    assert "Given: IVF-SQ8 with nprobe 4. Allowed: 0.95 or more" in str(caught.value)
    assert "index.kind=ivf_flat, or index.accept_recall=0.8 to keep it" in str(caught.value)
    refuse_below(tuned, "IVF-SQ8", 0.8, "")


def test_more_refinement_is_tried_where_lists_do_not_help() -> None:
    def search(queries: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        right = 10 if parameters.get("refine", 0) >= 4 and parameters["nprobe"] >= 2 else 7
        return np.tile([*range(right), *range(100, 110 - right)], (len(queries), 1))

    assert tune(search, "ivf_sq8", 64, QUERIES, TRUTH, 10, 0.95).parameters == {"nprobe": 2, "refine": 4}


def test_captions_that_ask_do_not_find_themselves() -> None:
    own = np.arange(40)
    truth = np.stack([own, own + 1, own + 2], axis=1)

    def search(queries: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        rows = own[: len(queries)] * 2  # the half that chooses: queries 0, 2, 4, ...
        return np.stack([rows, rows + 1, rows + 99], axis=1)[:, :k]

    tuned = tune(search, "ivf_flat", 1, Queries(QUERIES.vectors, "captions", own), truth, 2, 0.4)
    assert tuned.recall.of == "captions" and tuned.parameters == {"nprobe": 1}


def test_too_few_queries_and_another_width() -> None:
    with pytest.raises(RetrievalError, match="Given: 3 pictures. Allowed: 20 or more"):
        Queries(np.zeros((3, 4), np.float32), "pictures").check(4)
    with pytest.raises(RetrievalError, match=r"Allowed: \[queries, 8\]"):
        QUERIES.check(8)


def test_a_recall_that_is_good_enough_is_silent() -> None:
    refuse_below(Tuned({}, Recall(10, 0.95, 0.0, 10, "pictures", 0.95)), "IVF-Flat", None, "")
