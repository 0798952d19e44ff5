"""FAISS files written as a stream, read by FAISS."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_files import merge_lists, read_lists, write_flat, write_index
from tests.retrieval_index.vectors import captions_and_pictures

IP = faiss.METRIC_INNER_PRODUCT
VECTORS, QUERIES = captions_and_pictures(900, 20, 16)
BYTE = faiss.ScalarQuantizer.QT_8bit
CODECS: dict[str, Callable[[Any], Any]] = {
    "flat": lambda quantiser: faiss.IndexIVFFlat(quantiser, 16, 30, IP),
    "sq8": lambda quantiser: faiss.IndexIVFScalarQuantizer(quantiser, 16, 30, BYTE, IP),
    "pq": lambda quantiser: faiss.IndexIVFPQ(quantiser, 16, 30, 4, 4, IP),
}


def test_a_flat_file_is_the_one_that_faiss_writes(tmp_path: Path) -> None:
    write_flat(tmp_path / "ours", iter([VECTORS[:2], VECTORS[2:500], VECTORS[500:]]), 900, 16)
    index = faiss.IndexFlatIP(16)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("borders", [[0, 900], [0, 400, 401, 900], [0, 3, 900]])
def test_merged_lists_answer_as_one_index_does(tmp_path: Path, codec: str, borders: list[int]) -> None:
    quantiser = faiss.IndexFlatIP(16)
    index = CODECS[codec](quantiser)
    index.train(VECTORS)
    faiss.write_index(index, str(tmp_path / "empty"))
    parts = [tmp_path / f"part{number}" for number in range(len(borders) - 1)]
    for path, start, stop in zip(parts, borders[:-1], borders[1:], strict=True):
        part = faiss.read_index(str(tmp_path / "empty"))
        part.add_with_ids(VECTORS[start:stop], np.arange(start, stop))
        write_index(part, path)
    merge_lists(tmp_path / "merged", faiss.read_index(str(tmp_path / "empty")), parts)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "whole"))
    assert (tmp_path / "merged").stat().st_size == (tmp_path / "whole").stat().st_size
    merged = faiss.read_index(str(tmp_path / "merged"), faiss.IO_FLAG_MMAP_IFC)
    for nprobe in (1, 30):
        params = faiss.SearchParametersIVF(nprobe=nprobe)
        scores, rows = merged.search(QUERIES, 5, params=params)
        expected_scores, expected_rows = index.search(QUERIES, 5, params=params)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(scores, expected_scores)


def test_a_cut_part_and_a_file_of_another_kind(tmp_path: Path) -> None:
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(16), 16, 4, IP)
    index.train(VECTORS)
    empty = faiss.clone_index(index)
    index.add(VECTORS)
    write_index(index, tmp_path / "part")
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:-100])
    with pytest.raises(RetrievalError, match="part of the index is cut. Given: .*part"):
        merge_lists(tmp_path / "merged", empty, [tmp_path / "part"])
    assert not (tmp_path / "merged").exists()
    write_flat(tmp_path / "flat", [VECTORS], 900, 16)
    with pytest.raises(RetrievalError, match="form that is not known here"):
        read_lists(tmp_path / "flat", 40)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_full_disk(*, dir: Path, prefix: str, suffix: str) -> tuple[int, str]:
        path = dir / f"{prefix}12345678{suffix}"
        path.symlink_to("/dev/full")
        return os.open(os.devnull, os.O_RDONLY), str(path)

    monkeypatch.setattr("tempfile.mkstemp", on_a_full_disk)
    with pytest.raises(RetrievalError, match="The disk is full. Given: .*flat"):
        write_flat(tmp_path / "flat", [VECTORS], 900, 16)
    index = faiss.IndexFlatIP(16)
    index.add(VECTORS)
    with pytest.raises(RetrievalError, match="The disk is full. Given: .*index"):
        write_index(index, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
