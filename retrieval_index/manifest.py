"""manifest.json: what an index is made of. It is written last and replaced as a whole, so it is always true.

An index that has grown differs from the one before only in files that the new manifest names and the old one does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from retrieval_index.errors import RetrievalError
from retrieval_index.files import write_json
from retrieval_index.ownership import read_object

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
REBUILD = "build it again: tga-build-index captions=PATH out=DIR encoder.name=NAME overwrite=true"
REPLAN = "make it anew from the embeddings: tga-build-index out=DIR mode=replan"
Record = TypeVar("Record")


@dataclass(frozen=True)
class Source:
    """Caption files that were read together: by the build, or by one growth.

    Args:
        sha256: of their contents and how they were read, see `hash_corpus`.
        read: records.
        duplicates: records whose caption was there already.
        without_caption: records with an empty caption or none.
        too_long: records with a caption of more characters than allowed.
        rows: distinct captions that were new.
    """

    sha256: str
    read: int
    duplicates: int
    without_caption: int
    too_long: int
    rows: int


@dataclass(frozen=True)
class Shard:
    """One numbered pair of files: embeddings `[rows, width]` and the rows' captions.

    `truncated` counts captions with more tokens than the encoder reads.
    """

    rows: int
    truncated: int
    embeddings_sha256: str
    captions_sha256: str


@dataclass(frozen=True)
class EncoderRecord:
    """Which encoder, as told by its name, its revision and preprocessing, and the vectors of a sentence and a picture.

    `golden_picture` is None for an encoder that reads text only.
    """

    identity: str
    kind: str
    name: str
    pretrained: str | None
    revision: str | None
    preprocessing: dict[str, Any]
    width: int
    golden_sentence: tuple[float, ...]
    golden_picture: tuple[float, ...] | None


@dataclass(frozen=True)
class Recall:
    """Measured recall@k against exact search; 1 by construction where the search is exact.

    Args:
        k: neighbours compared.
        value: mean share of the exact `k` that were found, over queries that no parameter was chosen by.
        standard_error: of that mean.
        queries: how many there were; 0 for exact search.
        of: "pictures", "captions", "vectors" given by the caller, or "nothing" where the search is exact.
        target: what was asked for.
    """

    k: int
    value: float
    standard_error: float
    queries: int
    of: str
    target: float


@dataclass(frozen=True)
class IndexRecord:
    """The FAISS file: its plan and the search parameters that reach the recall.

    Args:
        generation: counts builds and growths from 0.
        file, bytes, sha256: of the FAISS file, by its path within the directory.
        plan: see `planner.Plan`, as plain values.
        search: `nprobe`, `ef_search` and `refine` (how many times k candidates are ranked again by their stored
            embeddings; 0: none), as far as the kind has them.
        recall: what was measured with them.
    """

    generation: int
    file: str
    bytes: int
    sha256: str
    plan: dict[str, Any]
    search: dict[str, int]
    recall: Recall


@dataclass(frozen=True)
class Manifest:
    """What an index is made of; every field is written to manifest.json.

    Args:
        encoder: which one.
        sources: what was read, the build first.
        shards: in the order of the rows.
        duplicates_sha256: of the file of duplicates of each source.
        dtype: of the embeddings on disk.
        shard_rows: rows per shard as asked for; the last one of a source may hold fewer.
        index: the FAISS file.
    """

    encoder: EncoderRecord
    sources: tuple[Source, ...]
    shards: tuple[Shard, ...]
    duplicates_sha256: tuple[str, ...]
    dtype: str
    shard_rows: int
    index: IndexRecord
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def rows(self) -> int:
        """Captions in the index."""
        return sum(shard.rows for shard in self.shards)

    @property
    def width(self) -> int:
        """Numbers per embedding."""
        return self.encoder.width

    def total(self, name: str) -> int:
        """A count of `Source`, over all sources."""
        return sum(getattr(source, name) for source in self.sources)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json, the mark of a complete index."""
    write_json(directory / MANIFEST, asdict(manifest), sort_keys=True)


def is_manifest(path: Path) -> bool:
    """Whether a file is the manifest of an index, of whatever version; many things have a manifest.json."""
    content = read_object(path)
    about = content.get("format_version"), content.get("encoder"), content.get("shards")
    return isinstance(about[0], int) and isinstance(about[1], dict) and isinstance(about[2], list)


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json.

    Raises:
        RetrievalError: no complete index there, or one of another format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise RetrievalError(f"There is no complete caption index (no {MANIFEST})", given=directory, remedy=REBUILD)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("format_version") if isinstance(content, dict) else None
        if version == FORMAT_VERSION:
            return _manifest(content)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise RetrievalError("The index manifest is damaged", given=f"{path}: {error!r}", remedy=REBUILD) from error
    raise RetrievalError("The index has another format", given=version, allowed=FORMAT_VERSION, remedy=REBUILD)


def _manifest(content: dict[str, Any]) -> Manifest:
    golden = content["encoder"]["golden_picture"]
    encoder = content["encoder"] | {
        "golden_sentence": tuple(content["encoder"]["golden_sentence"]),
        "golden_picture": None if golden is None else tuple(golden),
    }
    index = content["index"] | {"recall": _record(Recall, content["index"]["recall"])}
    values = content | {
        "encoder": _record(EncoderRecord, encoder),
        "sources": tuple(_record(Source, source) for source in content["sources"]),
        "shards": tuple(_record(Shard, shard) for shard in content["shards"]),
        "duplicates_sha256": tuple(content["duplicates_sha256"]),
        "index": _record(IndexRecord, index),
    }
    return _record(Manifest, values)


def _record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """A record of exactly these fields; a TypeError or KeyError tells a missing or an unknown one."""
    unknown = set(values) - {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise KeyError(*sorted(unknown))
    return kind(**values)
