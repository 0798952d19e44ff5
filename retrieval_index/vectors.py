"""Embeddings spread over .npy files, read by blocks or by rows into memory of their own.

Nothing is memory-mapped here: what a build holds resident is what it allocates, whatever the size of the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_index.manifest import Shard
from retrieval_index.store import embeddings_path, unreadable

BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class VectorFile:
    """One .npy file of `rows` x `width` numbers of type `dtype`, which begin at byte `offset`."""

    path: Path
    rows: int
    width: int
    dtype: str
    offset: int


class Vectors:
    """All rows of some .npy files, numbered through.

    Args:
        paths: the files, each `[rows, width]`.

    Raises:
        RetrievalError: a file that is missing, damaged or cut, or of another width than the first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = [_describe(path) for path in paths]
        self.width = self.files[0].width
        self._starts = np.cumsum([0, *(file.rows for file in self.files)])

    @classmethod
    def of_shards(cls, directory: Path, shards: Sequence[Shard]) -> Vectors:
        """The shards of an index directory."""
        return cls([embeddings_path(directory, number) for number in range(len(shards))])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, block `[rows, width]` float32) over the rows from `start` to `stop`."""
        stop = len(self) if stop is None else stop
        size = max(1, BLOCK_BYTES // (4 * self.width))
        for file, offset in zip(self.files, self._starts.tolist(), strict=False):
            first, last = max(start, offset), min(stop, offset + file.rows)
            with open(file.path, "rb") as stream:
                for row in range(first, last, size):
                    stream.seek(file.offset + (row - offset) * self.width * np.dtype(file.dtype).itemsize)
                    count = min(size, last - row) * self.width
                    block = np.fromfile(stream, dtype=file.dtype, count=count).reshape(-1, self.width)
                    yield row, block.astype(np.float32, copy=False)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows, `[rows, width]` float32, in their order."""
        result = np.empty((len(rows), self.width), dtype=np.float32)
        order = np.argsort(rows, kind="stable")
        borders = np.searchsorted(rows[order], self._starts)
        for file, offset, low, high in zip(self.files, self._starts.tolist(), borders[:-1], borders[1:], strict=False):
            if low == high:
                continue
            size = self.width * np.dtype(file.dtype).itemsize
            descriptor = os.open(file.path, os.O_RDONLY)
            try:
                for place in order[low:high].tolist():
                    data = os.pread(descriptor, size, file.offset + (int(rows[place]) - offset) * size)
                    result[place] = np.frombuffer(data, dtype=file.dtype)
            finally:
                os.close(descriptor)
        return result


def uniform_sample(rows: int, count: int, seed: int) -> np.ndarray:
    """About `count` distinct rows of `rows`, ascending, every row equally likely; memory goes by `count` alone."""
    generator = np.random.default_rng(seed)
    if count * 4 >= rows:
        return np.sort(generator.permutation(rows)[:count])
    return np.unique(generator.integers(0, rows, size=count))


def _describe(path: Path) -> VectorFile:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        return VectorFile(path, mapped.shape[0], mapped.shape[1], str(mapped.dtype), int(mapped.offset))
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise unreadable("A shard cannot be read", path, error) from error
