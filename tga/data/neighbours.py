"""Joining a data set to a caption index: for every picture the nearest captions, computed once, exactly and offline.

A sample's own caption never counts as its neighbour: rows of the index that bear the sample's id, or whose text equals
its caption after normalisation, are left out. The result is one Parquet file, `id, neighbour_ids, scores, texts`, that
carries a fingerprint of everything it was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_index.captions import normalise
from retrieval_index.encoders import Encoder
from retrieval_index.exact import check_k
from retrieval_index.index import CaptionIndex
from retrieval_index.store import Manifest
from tga.data.picture import encoded, identity
from tga.data.sample import Sample
from tga.files import atomic_path

BLOCK = 4096  # samples that are encoded, searched and written together
FINGERPRINT = b"tga.neighbours"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("neighbour_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("texts", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Joined:
    """What a join wrote: samples with neighbours, and samples that had nothing to search with (empty lists)."""

    samples: int
    without_query: int


def join_neighbours(
    index_dir: Path,
    data: Sequence[Sample],
    out: Path,
    *,
    k: int,
    encoder: Encoder,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Joined:
    """Write the `k` nearest captions of every sample with a picture.

    The query is the (first) picture, or the sample's caption when the encoder has no image tower. The search is exact.

    Args:
        index_dir: a caption index.
        data: the samples; those without a picture are left out.
        out: the Parquet file; it appears when it is complete.
        k: neighbours per sample, beside its own caption.
        encoder: the encoder of the index.
        batch_size: pictures (or captions) per batch of the encoder.
        device: torch device of the search.
        progress: called with ("neighbours", samples done, samples).

    Raises:
        RetrievalError: an index of another encoder, `k` too large for the corpus, a picture that cannot be decoded.
    """
    index = CaptionIndex.open(index_dir, encoder=encoder)
    samples = [sample for sample in data if sample.images]
    own = own_rows(index, samples)
    widest = max((len(rows) for rows in own), default=0)
    check_k(k, len(index) - widest)
    schema = SCHEMA.with_metadata({FINGERPRINT: fingerprint(index.manifest, samples, k).encode()})
    without_query = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(samples), BLOCK):
            block = samples[start : start + BLOCK]

            def report(done: int, start: int = start) -> None:
                if progress is not None:
                    progress("neighbours", start + done, len(samples))

            asked, queries = _encode(encoder, block, batch_size, report)
            scores, rows = index.search_exact(queries, k + widest, device=device)
            found = dict(zip(asked, zip(scores, rows, strict=True), strict=True))
            without_query += len(block) - len(asked)
            writer.write_table(_to_table(index, block, own[start : start + BLOCK], found, k, schema))
            report(len(block))
    return Joined(len(samples) - without_query, without_query)


def own_rows(index: CaptionIndex, samples: Sequence[Sample]) -> list[frozenset[int]]:
    """For each sample the rows of the index that hold its own caption, by id or by normalised text."""
    keys = [normalise(sample.caption) if sample.caption else None for sample in samples]
    by_id: dict[str, set[int]] = {sample.id: set() for sample in samples}
    by_key: dict[str, set[int]] = {key: set() for key in keys if key}
    for row, (ids, caption) in enumerate(index.store.records()):
        for identifier in ids:
            if identifier in by_id:
                by_id[identifier].add(row)
        if (key := normalise(caption)) in by_key:
            by_key[key].add(row)
    return [
        frozenset(by_id[sample.id] | (by_key[key] if key else set())) for sample, key in zip(samples, keys, strict=True)
    ]


def fingerprint(manifest: Manifest, samples: Iterable[Sample], k: int) -> str:
    """64 hex digits over what decides the neighbours: index, ids, captions, pictures by name and size, and `k`."""
    digest = hashlib.sha256(json.dumps([manifest.encoder, manifest.sha256, k], sort_keys=True).encode())
    for sample in samples:
        for image in sample.images[:1]:
            digest.update(json.dumps([sample.id, sample.caption, identity(image)]).encode())
    return digest.hexdigest()


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint in a neighbours file; None where there is no such file or it bears none."""
    if not path.is_file():
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid:
        return None
    value = metadata.get(FINGERPRINT)
    return value.decode() if value is not None else None


def _encode(
    encoder: Encoder, block: Sequence[Sample], batch_size: int, report: Callable[[int], None]
) -> tuple[list[int], np.ndarray]:
    """Positions of the samples that have a query, and their vectors `[queries, width]`."""
    if encoder.encodes_images:
        pictures = [encoded(sample.images[0]) for sample in block]
        return list(range(len(block))), encoder.encode_images(pictures, batch_size=batch_size, report=report)
    asked = [position for position, sample in enumerate(block) if sample.caption]
    captions = [block[position].caption or "" for position in asked]
    return asked, encoder.encode_texts(captions, batch_size=batch_size, report=report)


def _to_table(
    index: CaptionIndex,
    block: Sequence[Sample],
    own: Sequence[frozenset[int]],
    found: dict[int, tuple[np.ndarray, np.ndarray]],
    k: int,
    schema: pa.Schema,
) -> pa.Table:
    kept = [
        list(_others(*found[position], own[position], k)) if position in found else [] for position in range(len(block))
    ]
    flat = [row for neighbours in kept for row, _ in neighbours]
    ids, texts = iter(index.ids(flat)), iter(index.captions(flat))
    columns = [
        [sample.id for sample in block],
        [[next(ids) for _ in neighbours] for neighbours in kept],
        [[score for _, score in neighbours] for neighbours in kept],
        [[next(texts) for _ in neighbours] for neighbours in kept],
    ]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _others(scores: np.ndarray, rows: np.ndarray, own: frozenset[int], k: int) -> Iterator[tuple[int, float]]:
    """The first `k` (row, score) that are not the sample's own."""
    left = k
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        if left and row not in own:
            left -= 1
            yield row, score
