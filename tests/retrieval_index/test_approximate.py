"""Making and growing the FAISS file of every kind, in parts, and after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_index import approximate
from retrieval_index.approximate import PartWriter, emptied, grow_index, make_index, one_thread
from retrieval_index.engines import LocalEngine
from retrieval_index.planner import KINDS, Plan, choose_plan
from tests.retrieval_index.vectors import captions_and_pictures, write_vectors

ROWS, WIDTH = 1500, 16
CAPTIONS, PICTURES = captions_and_pictures(ROWS, 20, WIDTH)
INVERTED = [kind for kind in KINDS if kind.startswith("ivf")]


def plan_of(kind: str, rows: int = ROWS, part_rows: int = 400) -> Plan:
    plan = choose_plan(rows, WIDTH, 2**30, kind=kind)
    return replace(plan, part_rows=part_rows, code_bytes=4 if kind == "ivf_pq" else plan.code_bytes)


def make(directory: Path, kind: str, vectors: Any, **options: Any) -> Path:
    path = directory / "0.faiss"
    directory.mkdir(exist_ok=True)
    make_index(
        vectors, plan_of(kind, len(vectors), **options), path, run=LocalEngine().run_parts, report=lambda n: None
    )
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_holds_every_row_and_leaves_nothing_else(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "index", kind, write_vectors(tmp_path / "v", CAPTIONS))
    index = faiss.read_index(str(path))
    assert index.ntotal == ROWS and index.metric_type == faiss.METRIC_INNER_PRODUCT
    parameters = faiss.SearchParametersIVF(nprobe=index.nlist) if kind in INVERTED else None
    rows = index.search(CAPTIONS[::50], 5, params=parameters)[1]
    own = [row in found for row, found in zip(range(0, ROWS, 50), rows.tolist(), strict=True)]
    assert np.mean(own) > (0.8 if kind == "ivf_pq" else 0.99)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", INVERTED)
def test_parts_do_not_change_the_answers(tmp_path: Path, kind: str) -> None:
    vectors = write_vectors(tmp_path / "v", CAPTIONS)
    one, many = (faiss.read_index(str(make(tmp_path / str(n), kind, vectors, part_rows=n))) for n in (ROWS, 400))
    parameters = faiss.SearchParametersIVF(nprobe=4)
    for found, expected in zip(
        many.search(PICTURES, 5, params=parameters), one.search(PICTURES, 5, params=parameters), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", INVERTED)
def test_a_part_is_the_file_that_faiss_writes(tmp_path: Path, kind: str) -> None:
    vectors, plan = write_vectors(tmp_path / "v", CAPTIONS), plan_of(kind)
    own = approximate._learned(vectors, plan)
    approximate.write_index(own, tmp_path / approximate.TRAINED)
    writer = PartWriter(tuple(file.path for file in vectors.files), tmp_path, 500, ROWS, ROWS)
    assert writer(0) == ROWS - 500
    own.add_with_ids(CAPTIONS[500:], np.arange(500, ROWS))
    faiss.write_index(own, str(tmp_path / "own"))
    assert writer.path(0).read_bytes() == (tmp_path / "own").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_again(tmp_path: Path, kind: str) -> None:
    vectors = write_vectors(tmp_path / "v", CAPTIONS)
    first, second = (make(tmp_path / name, kind, vectors).read_bytes() for name in "ab")
    assert first == second


def test_an_interrupted_index_goes_on_with_the_next_part(tmp_path: Path) -> None:
    vectors = write_vectors(tmp_path / "v", CAPTIONS)
    undisturbed = make(tmp_path / "a", "ivf_sq8", vectors).read_bytes()
    made: list[int] = []

    def stopping(writer: PartWriter, numbers: range, report: Any) -> None:
        for number in numbers:
            if len(made) == 2 and not writer.path(number).exists():
                raise KeyboardInterrupt
            if not writer.path(number).exists():
                made.append(number)
            writer(number)

    (tmp_path / "b").mkdir()
    path = tmp_path / "b/0.faiss"
    with pytest.raises(KeyboardInterrupt):
        make_index(vectors, plan_of("ivf_sq8"), path, run=stopping, report=lambda n: None)
    assert not path.exists()
    trained = (tmp_path / "b" / approximate.TRAINED).stat().st_mtime_ns
    made[:] = []
    with pytest.raises(KeyboardInterrupt):
        made.extend([-1, -1])
        make_index(vectors, plan_of("ivf_sq8"), path, run=stopping, report=lambda n: None)
    assert (tmp_path / "b" / approximate.TRAINED).stat().st_mtime_ns == trained
    make_index(vectors, plan_of("ivf_sq8"), path, run=LocalEngine().run_parts, report=lambda n: None)
    assert path.read_bytes() == undisturbed


@pytest.mark.parametrize("kind", KINDS)
def test_growing_equals_filling_the_same_lists(tmp_path: Path, kind: str) -> None:
    old = make(tmp_path / "old", kind, write_vectors(tmp_path / "v1", CAPTIONS[:900]))
    vectors = write_vectors(tmp_path / "v2", CAPTIONS, files=2)
    (tmp_path / "new").mkdir()
    plan = plan_of(kind)
    grow_index(old, vectors, 900, plan, tmp_path / "new/1.faiss", run=LocalEngine().run_parts, report=lambda n: None)
    grown = faiss.read_index(str(tmp_path / "new/1.faiss"))
    assert grown.ntotal == ROWS
    if kind in INVERTED:
        expected = emptied(faiss.read_index(str(old)))
        expected.add(CAPTIONS)
        parameters = faiss.SearchParametersIVF(nprobe=5)
        np.testing.assert_array_equal(
            grown.search(PICTURES, 7, params=parameters)[1], expected.search(PICTURES, 7, params=parameters)[1]
        )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["1.faiss"]


def test_many_lists_are_found_by_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "HNSW_QUANTISER_LISTS", 16)
    path = make(tmp_path / "index", "ivf_flat", write_vectors(tmp_path / "v", CAPTIONS))
    index = faiss.read_index(str(path))
    assert isinstance(faiss.downcast_index(index.quantizer), faiss.IndexHNSWFlat) and index.ntotal == ROWS
    rows = index.search(CAPTIONS[::50], 1, params=faiss.SearchParametersIVF(nprobe=8))[1]
    assert rows[:, 0].tolist() == list(range(0, ROWS, 50))


def test_one_thread_is_given_back() -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    with one_thread(True):
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == 2
    faiss.omp_set_num_threads(before)
