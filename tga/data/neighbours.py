"""Joining a data set to a caption index: for every picture the nearest captions, computed once and offline.

A sample's own caption never counts as its neighbour: rows of the index that bear the sample's id, or whose text equals
its caption after normalisation, are left out. The result is one Parquet file, `id, neighbour_ids, scores, texts`, that
carries a fingerprint of everything it was made from. Until it is complete its parts stand in a folder beside it, and a
join that was interrupted goes on with the next part.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval_index.batching import Picture
from retrieval_index.captions import caption_key, normalise
from retrieval_index.checks import check_k
from retrieval_index.encoders import Encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.index import CaptionIndex
from retrieval_index.manifest import Manifest
from tga.data.picture import identity, open_picture
from tga.data.sample import Sample
from tga.errors import UserError
from tga.files import TEMPORARY, atomic_path, entries, remove_ours

BLOCK = 4096  # samples that are encoded, searched and written together
SEARCHES = ("exact", "index")
MARK, PART = "made_of", re.compile(r"\d{6,}\.parquet")  # what stands in the folder of the parts
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
    search: str = "exact",
    progress: Callable[[str, int, int], None] | None = None,
) -> Joined:
    """Write the `k` nearest captions of every sample with a picture.

    The query is the (first) picture, or the sample's caption when the encoder has no image tower.

    Args:
        index_dir: a caption index.
        data: the samples; those without a picture are left out.
        out: the Parquet file; it appears when it is complete.
        k: neighbours per sample, beside its own caption.
        encoder: the encoder of the index.
        batch_size: pictures (or captions) per batch of the encoder.
        device: torch device of the exact search.
        search: "exact" compares with every caption; "index" asks FAISS, with the recall that the manifest tells.
        progress: called with ("neighbours", samples done, samples).

    Raises:
        RetrievalError: an index of another encoder, `k` too large for the corpus, a picture that cannot be decoded.
        UserError: something else than an earlier neighbours file stands at `out`.
    """
    refuse_other_file(out)
    index = CaptionIndex.open(index_dir, encoder=encoder)
    samples = [sample for sample in data if sample.images]
    own = own_rows(index, samples)
    check_k(k, len(index) - max((len(rows) for rows in own), default=0))
    schema = SCHEMA.with_metadata({FINGERPRINT: fingerprint(index.manifest, samples, k, search).encode()})
    parts = _prepare_parts(out, schema.metadata[FINGERPRINT].decode())
    starts = range(0, len(samples), BLOCK)
    ask = index.search if search == "index" else functools.partial(index.search_exact, device=device)
    try:
        for number, start in enumerate(starts):
            block, of_block = samples[start : start + BLOCK], own[start : start + BLOCK]

            def report(done: int, start: int = start) -> None:
                if progress is not None:
                    progress("neighbours", start + done, len(samples))

            if not _part(parts, number).is_file():
                asked, queries = _encode(encoder, block, batch_size, report)
                scores, rows = ask(queries, k + max(map(len, of_block)))
                found = dict(zip(asked, zip(scores, rows, strict=True), strict=True))
                with atomic_path(_part(parts, number)) as temporary:
                    pq.write_table(_to_table(index, block, of_block, found, k, schema), temporary)
            report(len(block))
    finally:
        if not _part(parts, 0).is_file():  # nothing to go on from
            remove_ours(parts, _is_part)
    without_query = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for number in range(len(starts)):
            table = pq.read_table(_part(parts, number), schema=schema)
            without_query += pc.sum(pc.equal(pc.list_value_length(table["texts"]), 0)).as_py()
            writer.write_table(table)
    remove_ours(parts, _is_part)
    return Joined(len(samples) - without_query, without_query)


def own_rows(index: CaptionIndex, samples: Sequence[Sample]) -> list[frozenset[int]]:
    """For each sample the rows of the index that hold its own caption, by id or by normalised text."""
    keys = [caption_key(normalise(sample.caption)) if sample.caption else None for sample in samples]
    by_id = index.store.rows_of_ids(sample.id for sample in samples)
    by_key = index.store.rows_of_keys(key for key in keys if key is not None)
    return [
        frozenset(by_id[sample.id] | (by_key[key] if key is not None else set()))
        for sample, key in zip(samples, keys, strict=True)
    ]


def check_search(search: str) -> None:
    """Raise RetrievalError for a search that there is not."""
    if search not in SEARCHES:
        raise RetrievalError(
            "Unknown search", given=search, allowed=", ".join(SEARCHES), remedy="neighbours_search=exact"
        )


def fingerprint(manifest: Manifest, samples: Iterable[Sample], k: int, search: str = "exact") -> str:
    """64 hex digits over what decides the neighbours: index, ids, captions, pictures by name and size, `k`, search."""
    rows = [(shard.embeddings_sha256, shard.captions_sha256) for shard in manifest.shards]
    asked = manifest.index.sha256 if search == "index" else search
    made_of = [manifest.encoder.identity, rows, manifest.duplicates_sha256, k, asked]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for sample in samples:
        for image in sample.images[:1]:
            digest.update(json.dumps([sample.id, sample.caption, identity(image)]).encode())
    return digest.hexdigest()


def _prepare_parts(out: Path, made_of: str) -> Path:
    """The folder of the parts; what another join left in it is thrown away.

    Raises:
        UserError: there is something in it that no join has left there.
    """
    parts = out.with_name(f".{out.name}.parts")
    mark, text = parts / MARK, f"{made_of} in parts of {BLOCK}"
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == text):
        others = [name for name in entries(parts) if not (_is_part(name) and (mark.is_file() or MARK in name))]
        if others:
            raise UserError(
                "The parts of the neighbours would be written where something else is",
                given=f"{parts}: {others[0]}",
                remedy="move it away, or neighbours_out=ANOTHER_FILE.parquet",
            )
        remove_ours(parts, _is_part)
        with atomic_path(mark) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return parts


def _is_part(name: str) -> bool:
    """Whether a file in the folder of the parts has a name that a join gives, an unfinished one included."""
    if unfinished := TEMPORARY.fullmatch(name):
        name = unfinished["name"]
    return name == MARK or PART.fullmatch(name) is not None


def refuse_other_file(out: Path) -> None:
    """Raise UserError where `out` is there and is no neighbours file, such as the data set's own table."""
    if out.exists() and read_fingerprint(out) is None:
        raise UserError(
            "The neighbours would replace something that is no neighbours file",
            given=out,
            allowed="a new file, or the neighbours of an earlier join",
            remedy="neighbours_out=ANOTHER_FILE.parquet",
        )


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


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.parquet"


def _encode(
    encoder: Encoder, block: Sequence[Sample], batch_size: int, report: Callable[[int], None]
) -> tuple[list[int], np.ndarray]:
    """Positions of the samples that have a query, and their vectors `[queries, width]`."""
    if encoder.encodes_images:
        pictures = [query_picture(sample) for sample in block]
        return list(range(len(block))), encoder.encode_images(pictures, batch_size=batch_size, report=report)
    asked = [position for position, sample in enumerate(block) if sample.caption]
    captions = [block[position].caption or "" for position in asked]
    return asked, encoder.encode_texts(captions, batch_size=batch_size, report=report)


def query_picture(sample: Sample) -> Picture:
    """The picture that asks for a sample, to be read when it is encoded."""
    image = sample.images[0]
    return image if isinstance(image, Path) else functools.partial(open_picture, image)


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
