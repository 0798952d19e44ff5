"""Embeddings in several files, by blocks and by rows, against the array they were cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval_index import vectors as module
from retrieval_index.errors import RetrievalError
from retrieval_index.vectors import Vectors, uniform_sample
from tests.retrieval_index.vectors import write_vectors


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_blocks_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 7 * 4 * 8)  # seven rows
    expected = np.random.default_rng(0).standard_normal((50, 8)).astype(dtype)
    found = write_vectors(tmp_path, expected)
    assert len(found) == 50 and found.width == 8
    for start, stop in ((0, 50), (3, 41), (20, 20)):
        blocks = list(found.blocks(start, stop))
        together = np.concatenate([np.empty((0, 8), np.float32), *(block for _, block in blocks)])
        np.testing.assert_array_equal(together, expected[start:stop].astype(np.float32))
        assert all(len(block) <= 7 and block.dtype == np.float32 for _, block in blocks)
        assert [row for row, _ in blocks] == [start + sum(len(b) for _, b in blocks[:n]) for n in range(len(blocks))]
    rows = np.array([49, 0, 17, 17, 25, 8])
    np.testing.assert_array_equal(found.take(rows), expected[rows].astype(np.float32))


def test_a_file_that_is_missing_or_cut(tmp_path: Path) -> None:
    write_vectors(tmp_path, np.zeros((9, 4), np.float32), files=1)
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*none.npy"):
        Vectors([tmp_path / "none.npy"])
    (tmp_path / "0.npy").write_bytes((tmp_path / "0.npy").read_bytes()[:-4])
    with pytest.raises(RetrievalError, match="cannot be read. Given: .*0.npy"):
        Vectors([tmp_path / "0.npy"])


@pytest.mark.parametrize(("rows", "count"), [(100, 100), (100, 60), (10_000, 500)])
def test_a_uniform_sample_comes_from_everywhere(rows: int, count: int) -> None:
    sample = uniform_sample(rows, count, seed=1)
    assert 0.9 * count <= len(sample) <= count
    assert (np.diff(sample) > 0).all() and 0 <= sample[0] and sample[-1] < rows
    thirds = np.histogram(sample, bins=3, range=(0, rows))[0] / len(sample)
    assert (abs(thirds - 1 / 3) < 0.08).all()
    np.testing.assert_array_equal(sample, uniform_sample(rows, count, seed=1))
