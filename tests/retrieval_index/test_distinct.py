"""Records of equal keys, against a dictionary."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from retrieval_index.distinct import BYTES_PER_RECORD, find_owners, keys_of
from retrieval_index.errors import RetrievalError


@pytest.mark.parametrize("parts", [1, 7])
def test_owners_and_copies_for_any_number_of_parts(tmp_path: Path, parts: int) -> None:
    generator = np.random.default_rng(0)
    pool = generator.integers(0, 2**64, size=(50, 2), dtype=np.uint64)
    keys = pool[generator.integers(0, 50, size=400)]

    def blocks() -> Iterator[np.ndarray]:
        yield from np.split(keys, [1, 150, 150])

    owner, copies = find_owners(blocks, 400, tmp_path, 400 * BYTES_PER_RECORD // parts)
    first: dict[tuple[int, ...], int] = {}
    expected = [first.setdefault(tuple(key), number) for number, key in enumerate(keys.tolist())]
    assert owner.tolist() == expected
    assert copies.tolist() == [expected.count(number) if expected[number] == number else 0 for number in range(400)]


def test_keys_differ_in_either_half(tmp_path: Path) -> None:
    keys = np.array([[1, 1], [1, 2], [2, 1], [1, 1]], dtype=np.uint64)
    owner, _ = find_owners(lambda: iter([keys]), 4, tmp_path, 10**6)
    assert owner.tolist() == [0, 1, 2, 0]


def test_keys_of_a_sliced_column() -> None:
    column = pa.array([bytes([n] * 16) for n in range(5)], pa.binary(16))
    assert keys_of(column[2:4]).tolist() == [[0x0202020202020202] * 2, [0x0303030303030303] * 2]


def test_a_full_disk_is_found_before_the_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RetrievalError, match="The disk is full. Given: .*owner.bin"):
        find_owners(lambda: iter(()), 400, tmp_path, 2**20)
