"""What lies in an index directory, and the shards and captions as they are read: memory-mapped.

    manifest.json             written last; says what everything else must be
    shards/00000.npy          embeddings [rows, width], L2-normalised
    shards/00000.arrow        the same rows: id, caption, key, count
    duplicates/00000.arrow    row and id of every record whose caption was there already; one file per source
    index/00000.faiss         FAISS inner-product index over all shards, numbered by generation

Files never change once they are there: growing adds files and replaces the manifest.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval_index.captions import KEY_BYTES
from retrieval_index.errors import RetrievalError
from retrieval_index.files import TEMPORARY, atomic_path
from retrieval_index.manifest import MANIFEST, REBUILD, Manifest

ROW_SCHEMA = pa.schema(
    [("id", pa.string()), ("caption", pa.string()), ("key", pa.binary(KEY_BYTES)), ("count", pa.int32())]
)
DUPLICATE_SCHEMA = pa.schema([("row", pa.int64()), ("id", pa.string())])
Value = TypeVar("Value", str, bytes)
IDENTITY = "work.json"  # the mark of a work directory: what is being made in it, or that it was replaced
FOLDERS = ("shards", "duplicates", "index", "read", "encoded")
# Every name that a build or a growth gives; the rest is of work that is under way.
INDEX_FILE = re.compile(r"shards/\d{5,}\.(npy|arrow)|duplicates/\d{5,}\.arrow|index/\d{5,}\.faiss")
WORK_FILE = re.compile(
    r"rows\.json|read/\d{5,}\.(json|arrow)|read/(owner|copies)\.bin|encoded/\d{5,}\.json"
    r"|index/(trained|part-\d{5,})\.faiss|index/stage\.json"
)


def is_index_file(name: str) -> bool:
    """Whether a path within the directory of an index is one that the index gives to a file of its own."""
    return name in (MANIFEST, IDENTITY) or INDEX_FILE.fullmatch(name) is not None


def is_work_file(name: str) -> bool:
    """Whether a path within a work directory is one that a build or a growth gives, unfinished files included."""
    folder, _, last = name.rpartition("/")
    if unfinished := TEMPORARY.fullmatch(last):
        name = f"{folder}/{unfinished['name']}".lstrip("/")
    return is_index_file(name) or WORK_FILE.fullmatch(name) is not None


def embeddings_path(directory: Path, number: int) -> Path:
    """Where the embeddings of shard `number` lie."""
    return directory / "shards" / f"{number:05d}.npy"


def rows_path(directory: Path, number: int) -> Path:
    """Where the captions of shard `number` lie."""
    return directory / "shards" / f"{number:05d}.arrow"


def duplicates_path(directory: Path, generation: int) -> Path:
    """Where the duplicates of source `generation` lie."""
    return directory / "duplicates" / f"{generation:05d}.arrow"


def index_path(directory: Path, generation: int) -> Path:
    """Where the FAISS index of a generation lies."""
    return directory / "index" / f"{generation:05d}.faiss"


def write_embeddings(directory: Path, number: int, embeddings: np.ndarray) -> None:
    """Write the embeddings `[rows, width]` of one shard."""
    with atomic_path(embeddings_path(directory, number)) as temporary, open(temporary, "wb") as stream:
        np.save(stream, embeddings, allow_pickle=False)


def open_embeddings(path: Path, rows: int, width: int, dtype: str) -> np.ndarray:
    """One shard's embeddings `[rows, width]`, memory-mapped.

    Raises:
        RetrievalError: a file that is missing, cut, or of another shape than the manifest says.
    """
    try:
        shard: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable("A shard cannot be read", path, error) from error
    if shard.shape != (rows, width) or shard.dtype != np.dtype(dtype):
        raise RetrievalError(
            "A shard is not what the manifest says",
            given=f"{path}: {shard.dtype}{list(shard.shape)}",
            allowed=f"{dtype}{[rows, width]}",
            remedy=REBUILD,
        )
    return shard


def open_shards(directory: Path, manifest: Manifest) -> list[np.ndarray]:
    """All embeddings, memory-mapped, one array per shard; errors as `open_embeddings`."""
    return [
        open_embeddings(embeddings_path(directory, number), shard.rows, manifest.width, manifest.dtype)
        for number, shard in enumerate(manifest.shards)
    ]


def unreadable(problem: str, path: Path, error: BaseException) -> RetrievalError:
    """The error of a file that cannot be opened, or of too many open files."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return RetrievalError("The index has more shards than files may be open", given=path, remedy="ulimit -n 65536")
    return RetrievalError(problem, given=f"{path}: {error}", remedy=REBUILD)


class CaptionStore:
    """The captions of an index by row, memory-mapped.

    Raises:
        RetrievalError: a file that is missing or damaged, or holds another number of rows than the manifest says.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        shards = [_open(rows_path(directory, number)) for number in range(len(manifest.shards))]
        for number, (shard, batches) in enumerate(zip(manifest.shards, shards, strict=True)):
            if sum(map(len, batches)) != shard.rows:
                raise RetrievalError(
                    "The captions of a shard are not what the manifest says",
                    given=f"{rows_path(directory, number)}: {sum(map(len, batches))} captions",
                    allowed=shard.rows,
                    remedy=REBUILD,
                )
        self._batches = [batch for batches in shards for batch in batches]
        self._starts = np.cumsum([0, *map(len, self._batches)])
        copies = [_open(duplicates_path(directory, number)) for number in range(len(manifest.sources))]
        self._duplicates = [batch for batches in copies for batch in batches]
        self._added = [batch for batches in copies[1:] for batch in batches]  # those of the build are in `count`

    def __len__(self) -> int:
        return int(self._starts[-1])

    def captions(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Captions of the rows, in their order."""
        return self._take("caption", rows)

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Ids of the rows, in their order: of the first record that held the caption."""
        return self._take("id", rows)

    def counts(self, rows: Sequence[int] | np.ndarray) -> list[int]:
        """How many records held the caption of each row."""
        unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        counts = np.asarray(self._take("count", unique), dtype=np.int64)
        for batch in self._added:
            at = pc.index_in(batch.column("row"), value_set=pa.array(unique)).drop_null()
            counts += np.bincount(at.to_numpy(), minlength=len(unique))
        return counts[inverse].tolist()

    def rows_of_ids(self, ids: Iterable[str]) -> dict[str, set[int]]:
        """For each id the rows whose caption was held by a record of that id."""
        found = self._matches("id", ids)
        values = pa.array(list(found), pa.string())
        for batch in self._duplicates:
            _add_matches(list(found.values()), batch.column("id"), values, batch.column("row").to_numpy())
        return found

    def rows_of_keys(self, keys: Iterable[bytes]) -> dict[bytes, set[int]]:
        """For each key (see `caption_key`) the row of that caption, if there is one."""
        return self._matches("key", keys)

    def _matches(self, column: str, values: Iterable[Value]) -> dict[Value, set[int]]:
        found: dict[Value, set[int]] = {value: set() for value in values}
        wanted = pa.array(list(found), ROW_SCHEMA.field(column).type)
        for start, batch in zip(self._starts.tolist(), self._batches, strict=False):
            _add_matches(list(found.values()), batch.column(column), wanted, np.arange(start, start + len(batch)))
        return found

    def _take(self, column: str, rows: Sequence[int] | np.ndarray) -> list:
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}")
        batches = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(batches, kind="stable")
        result: list = [None] * len(wanted)
        for places in np.split(order, np.flatnonzero(np.diff(batches[order])) + 1):
            if len(places):
                number = batches[places[0]]
                taken = self._batches[number].column(column).take(pa.array(wanted[places] - self._starts[number]))
                for place, value in zip(places.tolist(), taken.to_pylist(), strict=True):
                    result[place] = value
        return result


def _open(path: Path) -> list[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        return [file.get_batch(number) for number in range(file.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable("The captions of a shard cannot be read", path, error) from error


def _add_matches(found: list[set[int]], column: pa.Array, values: pa.Array, rows: np.ndarray) -> None:
    at = pc.index_in(column, value_set=values)
    hits = np.flatnonzero(at.is_valid().to_numpy(zero_copy_only=False))
    for hit, value in zip(hits.tolist(), at.take(pa.array(hits)).to_pylist(), strict=True):
        found[value].add(int(rows[hit]))
