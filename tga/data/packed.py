"""Half a million samples that many processes read without holding them.

A list of Python objects is copied into every data worker. Here the samples are pickled one after the other into a
temporary file that all processes map into memory; what travels to a worker is the file's name and the offsets.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from tga.data.sample import Sample


class PackedSamples(Sequence[Sample]):
    """A read-only sequence of samples in a temporary file, which is removed with the object that made it.

    Attributes:
        lengths: characters of the conversation of each sample, `[samples]` int64; what batches are grouped by.
        pictures: pictures of each sample, `[samples]` int64.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        offsets, lengths, pictures = [0], [], []
        handle, self._path = tempfile.mkstemp(prefix="tga-samples-")
        self._remove: Callable[[], Any] | None = weakref.finalize(self, _remove, self._path, os.getpid())
        with os.fdopen(handle, "wb") as file:
            for sample in samples:
                offsets.append(offsets[-1] + file.write(pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL)))
                lengths.append(sum(len(turn.text) for turn in sample.turns))
                pictures.append(len(sample.images))
        self._offsets = np.array(offsets, dtype=np.int64)
        self.lengths, self.pictures = np.array(lengths, dtype=np.int64), np.array(pictures, dtype=np.int64)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # the checks of a list: negative numbers, IndexError
        start, end = self._offsets[number : number + 2].tolist()
        sample: Sample = pickle.loads(self._mapped()[start:end])  # our own bytes, from a file only this user may write
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            with open(self._path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: without the mapping, and without the duty to remove the file."""
        return {**self.__dict__, "_map": None, "_remove": None}


def _remove(path: str, owner: int) -> None:
    """Remove the file, unless this is a forked child that ends before the process that made it."""
    if os.getpid() == owner:
        os.unlink(path)
