"""From caption files to the rows of the shards: every distinct caption once, with a count, in bounded memory.

Two passes. The first writes every file's records with their keys to `read/`, a file of its own for each, so that a
killed reading goes on with the next file. The second finds the records of equal keys and writes `shards/NNNNN.arrow`,
the first spelling of every caption in the order of appearance, and `duplicates/NNNNN.arrow`, the ids of all others.
Rows of an index that grows stand before the new records, so that a caption it knows already is a duplicate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval_index.captions import KEY_BYTES, caption_key, normalise
from retrieval_index.distinct import find_owners, keys_of
from retrieval_index.errors import RetrievalError
from retrieval_index.files import atomic_path, write_json
from retrieval_index.ownership import remove_ours
from retrieval_index.readers import Keys, Records, hash_content, read_records
from retrieval_index.store import DUPLICATE_SCHEMA, ROW_SCHEMA, duplicates_path, is_work_file, rows_path

BATCH = 65_536
READ = "read"
ROWS_WRITTEN = "rows.json"
RECORD_SCHEMA = pa.schema([("id", pa.string()), ("caption", pa.string()), ("key", pa.binary(KEY_BYTES))])


@dataclass(frozen=True)
class ReadCounts:
    """Records read, and those left out: with an empty caption or none, and with one that is too long."""

    read: int = 0
    without_caption: int = 0
    too_long: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Written:
    """What the second pass wrote: new rows, records whose caption was there already, and the counts of the first."""

    rows: int
    duplicates: int
    counts: ReadCounts


def hash_corpus(files: Sequence[Path], keys: Keys, max_characters: int) -> str:
    """64 hex digits over the contents of caption files and how they are read; names and places do not count."""
    read = [keys.caption, keys.id, max_characters, *(hash_content(file) for file in files)]
    return hashlib.sha256(json.dumps(read).encode()).hexdigest()


def read_file(file: Path, directory: Path, number: int, keys: Keys, max_characters: int) -> ReadCounts:
    """Write the records of caption file `number` below `directory`, unless they are there.

    Raises:
        RetrievalError: a file that cannot be read.
    """
    done = directory / READ / f"{number:05d}.json"
    if not done.is_file():
        with (
            atomic_path(_records_path(directory, number)) as temporary,
            pa.ipc.new_file(str(temporary), RECORD_SCHEMA) as writer,
        ):
            counts = _write_records(read_records(file, keys), writer, max_characters)
        write_json(done, asdict(counts))
    return ReadCounts(**json.loads(done.read_text(encoding="utf-8")))


def write_rows(
    directory: Path,
    files: int,
    known: Sequence[Path],
    *,
    first_shard: int,
    generation: int,
    shard_rows: int,
    memory: int,
) -> Written:
    """Write the rows of the distinct captions that `read_file` left in `directory`, unless they are there.

    Args:
        directory: of the work.
        files: caption files that were read.
        known: tables of rows of an index that grows, in order.
        first_shard: number of the first shard to write.
        generation: number of the file of duplicates.
        shard_rows: captions per shard.
        memory: bytes that the search for equal captions may take.
    """
    done = directory / ROWS_WRITTEN
    if not done.is_file():
        counts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((directory / READ).glob("*.json"))]
        total = sum((ReadCounts(**count) for count in counts), ReadCounts())
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(duplicates_path(directory, generation)))
            duplicates = stack.enter_context(pa.ipc.new_file(str(temporary), DUPLICATE_SCHEMA))
            writer = _RowWriter(directory, first_shard, shard_rows, duplicates)
            _write_distinct(directory, [_records_path(directory, n) for n in range(files)], known, writer, memory)
        write_json(done, {"rows": writer.rows, "duplicates": writer.duplicates, "counts": asdict(total)})
    remove_ours(directory, lambda name: name.startswith(f"{READ}/") and is_work_file(name))
    written = json.loads(done.read_text(encoding="utf-8"))
    return Written(written["rows"], written["duplicates"], ReadCounts(**written["counts"]))


def _write_records(records: Records, writer: pa.RecordBatchWriter, max_characters: int) -> ReadCounts:
    read = without_caption = too_long = 0
    ids: list[str] = []
    texts: list[str] = []
    keys: list[bytes] = []

    def flush() -> None:
        fields = zip((ids, texts, keys), RECORD_SCHEMA, strict=True)
        columns = [pa.array(column, field.type) for column, field in fields]
        writer.write_batch(pa.record_batch(columns, schema=RECORD_SCHEMA))
        ids.clear()
        texts.clear()
        keys.clear()

    for identifier, caption in records:
        read += 1
        text = " ".join(caption.split()) if caption else ""
        normalised = normalise(text)
        if not normalised:
            without_caption += 1
        elif len(text) > max_characters:
            too_long += 1
        else:
            ids.append(_encodable(identifier))
            texts.append(_encodable(text))
            keys.append(caption_key(normalised))
            if len(ids) == BATCH:
                flush()
    flush()
    return ReadCounts(read, without_caption, too_long)


def _encodable(text: str) -> str:
    """The text with a question mark for half a surrogate pair, which JSON may hold and UTF-8 may not."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _write_distinct(
    directory: Path, tables: Sequence[Path], known: Sequence[Path], writer: _RowWriter, memory: int
) -> None:
    sources = [*known, *tables]
    sizes = [sum(len(batch) for batch in _batches(path)) for path in sources]
    old, records = sum(sizes[: len(known)]), sum(sizes)

    def blocks() -> Iterator[np.ndarray]:
        for path in sources:
            for batch in _batches(path):
                yield keys_of(batch.column("key"))

    if not records:
        return
    owner, copies = find_owners(blocks, records, directory / READ, memory)
    start, next_row = old, old
    for path in tables:
        for batch in _batches(path):
            numbers = np.arange(start, start + len(batch))
            own = np.array(owner[start : start + len(batch)])
            first = own == numbers
            rows = np.arange(next_row, next_row + int(first.sum()))
            writer.add_rows(batch.filter(pa.array(first)), copies[numbers[first]])
            # From here on the slot of a first record tells its row, for the duplicates that come after it.
            owner[numbers[first]] = -1 - rows
            others = own[~first]
            writer.add_duplicates(np.where(others < old, others, -1 - owner[others]), batch.filter(pa.array(~first)))
            start, next_row = start + len(batch), next_row + len(rows)
    writer.close()


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


def _records_path(directory: Path, number: int) -> Path:
    return directory / READ / f"{number:05d}.arrow"


class _RowWriter:
    """Cuts a stream of new rows into shards, and passes the duplicates on to their file."""

    def __init__(
        self, directory: Path, first_shard: int, shard_rows: int, duplicates: pa.RecordBatchFileWriter
    ) -> None:
        self._directory, self._shard, self._shard_rows = directory, first_shard, shard_rows
        self._duplicates = duplicates
        self._waiting: list[pa.RecordBatch] = []
        self.rows = self.duplicates = 0

    def add_rows(self, records: pa.RecordBatch, copies: np.ndarray) -> None:
        columns = [*(records.column(name) for name in ("id", "caption", "key")), pa.array(copies, pa.int32())]
        self._waiting.append(pa.record_batch(columns, schema=ROW_SCHEMA))
        self.rows += len(records)
        while sum(map(len, self._waiting)) >= self._shard_rows:
            self._write_shard()

    def add_duplicates(self, rows: np.ndarray, records: pa.RecordBatch) -> None:
        columns = [pa.array(rows, pa.int64()), records.column("id")]
        self._duplicates.write_batch(pa.record_batch(columns, schema=DUPLICATE_SCHEMA))
        self.duplicates += len(records)

    def close(self) -> None:
        if sum(map(len, self._waiting)):
            self._write_shard()

    def _write_shard(self) -> None:
        table = pa.Table.from_batches(self._waiting)
        _write_table(rows_path(self._directory, self._shard), table[: self._shard_rows])
        self._waiting = table[self._shard_rows :].to_batches()
        self._shard += 1


def _write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file in batches of one size, which makes its bytes independent of how the rows came."""
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=BATCH)


def refuse_empty(files: Sequence[Path], written: Written) -> None:
    """Raise RetrievalError where the files held no caption at all."""
    if written.rows + written.duplicates == 0:
        raise RetrievalError(
            "The corpus holds no captions",
            given=f"{', '.join(map(str, files[:5]))} with {written.counts.read} records",
            allowed="a line of .txt, the column or key 'caption' or 'text', the one answer of a LLaVA record",
            remedy="captions=PATH of files that hold captions, or index.caption_key=KEY",
        )
