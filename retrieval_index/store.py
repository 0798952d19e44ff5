"""What lies in an index directory: numbered shards of embeddings, the caption store, and the manifest.

    manifest.json         written last; says what everything else must be
    captions.arrow        one row per caption: id, caption, other_ids (memory-mapped when read)
    shards/00000.npy      embeddings [rows, width], L2-normalised
    index/flat.faiss      FAISS inner-product index over all shards

Files are written under a temporary name, flushed and renamed: a name that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval_index.captions import Corpus
from retrieval_index.errors import RetrievalError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CAPTIONS = "captions.arrow"
FLAT_INDEX = "index/flat.faiss"
CAPTION_ROWS_PER_BATCH = 65_536
CAPTION_SCHEMA = pa.schema([("id", pa.string()), ("caption", pa.string()), ("other_ids", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Manifest:
    """What an index is made of; every field is written to manifest.json.

    Args:
        corpus_sha256: hash over the caption files' bytes.
        read, duplicates, without_caption, rows: records read, and what became of them; `rows` are indexed.
        encoder: identity of the encoder (see EncoderSpec.identity).
        encoder_kind, encoder_name, encoder_pretrained: how it was asked for.
        golden_embedding: the encoder's vector of its fixed sentence.
        width, dtype: of the embeddings on disk.
        shard_rows: rows per shard (the last one may hold fewer).
        sha256: path within the directory -> SHA-256 of the file.
    """

    corpus_sha256: str
    read: int
    duplicates: int
    without_caption: int
    rows: int
    encoder: str
    encoder_kind: str
    encoder_name: str
    encoder_pretrained: str | None
    golden_embedding: tuple[float, ...]
    width: int
    dtype: str
    shard_rows: int
    sha256: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that takes the name `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, the mark of a complete index."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(directory / MANIFEST) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        RetrievalError: no complete index there, or one of another format.
    """
    path = directory / MANIFEST
    remedy = "build it: tga-build-index captions=PATH out=DIR encoder.name=NAME"
    if not path.is_file():
        raise RetrievalError(f"There is no complete caption index (no {MANIFEST})", given=directory, remedy=remedy)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version == FORMAT_VERSION:
            return Manifest(**{**fields, "golden_embedding": tuple(fields["golden_embedding"])})
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise RetrievalError("The index manifest is damaged", given=f"{path}: {error}", remedy=remedy) from error
    raise RetrievalError("The index has another format", given=version, allowed=FORMAT_VERSION, remedy=remedy)


def shard_path(directory: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return directory / "shards" / f"{number:05d}.npy"


def write_shard(directory: Path, number: int, embeddings: np.ndarray) -> None:
    """Write one shard of embeddings `[rows, width]`."""
    with replacing(shard_path(directory, number)) as temporary, open(temporary, "wb") as stream:
        np.save(stream, embeddings, allow_pickle=False)


def open_shards(directory: Path, manifest: Manifest) -> list[np.ndarray]:
    """All shards, memory-mapped, each `[rows, width]`.

    Raises:
        RetrievalError: a shard that is missing, damaged, or of another shape than the manifest says.
    """
    shards = []
    for number in range(manifest.shards):
        path = shard_path(directory, number)
        rows = min(manifest.shard_rows, manifest.rows - number * manifest.shard_rows)
        try:
            shard = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RetrievalError(
                "A shard cannot be read", given=f"{path}: {error}", remedy="build the index again"
            ) from error
        if shard.shape != (rows, manifest.width) or shard.dtype != np.dtype(manifest.dtype):
            raise RetrievalError(
                "A shard is not what the manifest says",
                given=f"{path}: {shard.dtype}{list(shard.shape)}",
                allowed=f"{manifest.dtype}{[rows, manifest.width]}",
                remedy="build the index again",
            )
        shards.append(shard)
    return shards


def write_captions(directory: Path, corpus: Corpus) -> None:
    """Write the caption store."""
    with replacing(directory / CAPTIONS) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, CAPTION_SCHEMA) as writer:
            for start in range(0, len(corpus.texts), CAPTION_ROWS_PER_BATCH):
                rows = slice(start, start + CAPTION_ROWS_PER_BATCH)
                ids = corpus.ids[rows]
                columns = [
                    [copies[0] for copies in ids],
                    list(corpus.texts[rows]),
                    [list(copies[1:]) for copies in ids],
                ]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, CAPTION_SCHEMA, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=CAPTION_SCHEMA))


class CaptionStore:
    """The captions of an index by row, memory-mapped.

    Raises:
        RetrievalError: a file that is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / CAPTIONS
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise RetrievalError(
                "The caption store cannot be read", given=f"{path}: {error}", remedy="build the index again"
            ) from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def captions(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Captions of the rows, in their order."""
        return self._take("caption", rows)

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """First ids of the rows, in their order."""
        return self._take("id", rows)

    def records(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """(all ids, caption) of every row, in order."""
        for batch in self._table.to_batches():
            columns = batch.to_pydict()
            for first, caption, others in zip(columns["id"], columns["caption"], columns["other_ids"], strict=True):
                yield (first, *others), caption

    def _take(self, column: str, rows: Sequence[int] | np.ndarray) -> list[str]:
        taken: list[str] = self._table.column(column).take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()
        return taken
