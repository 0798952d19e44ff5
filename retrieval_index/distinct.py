"""Which records hold the same caption, found by their 128-bit keys in bounded memory.

The keys are cut into as many parts as memory needs (by their first bits), and every part is sorted on its own: a
billion captions need no table of a billion entries. The result does not depend on the number of parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval_index.captions import KEY_BYTES
from retrieval_index.files import FULL, disk_full

BYTES_PER_RECORD = 128  # of a part while it is sorted: key, number, order, borders and the copies NumPy makes


def find_owners(
    blocks: Callable[[], Iterator[np.ndarray]], records: int, scratch: Path, memory: int
) -> tuple[np.ndarray, np.ndarray]:
    """For every record the first record of the same key, and how often each first one occurs.

    Args:
        blocks: gives the keys anew at each call, in the order of the records: `[block, 2]` uint64.
        records: how many there are.
        scratch: an existing directory; two files of 8 and 4 bytes per record are made there.
        memory: bytes that a part may take.

    Returns:
        `owner` `[records]` int64 (a record that is the first of its key is its own) and `copies` `[records]` int32 (0
        where the record is not the first), both mapped from `scratch`.

    Raises:
        RetrievalError: the disk is full.
    """
    owner = _mapped(scratch / "owner.bin", np.dtype(np.int64), records)
    copies = _mapped(scratch / "copies.bin", np.dtype(np.int32), records)
    parts = max(1, -(-records * BYTES_PER_RECORD // memory))
    for part in range(parts):
        keys, numbers = _part(blocks(), part, parts)
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in the order of the records
        keys, numbers = keys[order], numbers[order]
        starts = np.ones(len(keys), dtype=bool)
        starts[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        borders = np.flatnonzero(starts)
        counts = np.diff(np.append(borders, len(keys)))
        first = numbers[borders]
        owner[numbers] = np.repeat(first, counts)
        copies[first] = counts
    return owner, copies


def keys_of(column: pa.Array) -> np.ndarray:
    """Keys `[records, 2]` uint64 of an Arrow column of 16 bytes each, without a copy."""
    values = np.frombuffer(column.buffers()[1], dtype="<u8").reshape(-1, 2)
    assert column.type.byte_width == KEY_BYTES
    return values[column.offset : column.offset + len(column)]


def _mapped(path: Path, dtype: np.dtype, records: int) -> np.ndarray:
    """Zeros `[records]` in a file, whose place on the disk is taken at once: later, a full disk would be a signal."""
    with open(path, "wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, records * dtype.itemsize)
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(path) from error
            raise
    return np.memmap(path, dtype=dtype, mode="r+", shape=(records,))


def _part(blocks: Iterator[np.ndarray], part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    kept_keys, kept_numbers, start = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)], 0
    for block in blocks:
        # The upper 32 bits, spread evenly over the parts.
        mine = np.flatnonzero((block[:, 0] >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part)
        kept_keys.append(block[mine])
        kept_numbers.append(mine + start)
        start += len(block)
    return np.concatenate(kept_keys), np.concatenate(kept_numbers)
