"""Building an index: captions -> shards of embeddings -> FAISS index -> manifest, in a directory renamed at the end.

The work stands in `DIR.building` until it is complete. Started again after a kill with the same captions, encoder and
settings, only the missing shards are computed, and the result is the same byte for byte: a shard depends on nothing
but its own captions. Anything else found in `DIR.building` is thrown away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retrieval_index.captions import Corpus
from retrieval_index.encoders import Encoder, EncoderSpec, golden_embedding
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_flat import check_faiss, write_flat
from retrieval_index.store import (
    CAPTIONS,
    FLAT_INDEX,
    Manifest,
    file_sha256,
    open_shards,
    replacing,
    shard_path,
    write_captions,
    write_manifest,
    write_shard,
)

DTYPES = ("float32", "float16")
PLAN = "plan.json"
# stage ("encode", "index"), done, total
Progress = Callable[[str, int, int], None]


def build_index(
    corpus: Corpus,
    out: Path,
    encoder: Encoder,
    spec: EncoderSpec,
    *,
    shard_rows: int = 100_000,
    batch_size: int = 256,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Manifest:
    """Build the index of a corpus at `out`; an index already there is replaced when the new one is complete.

    Args:
        corpus: the captions, see `read_corpus`.
        out: the index directory.
        encoder: the loaded encoder; `spec` says which one it is.
        spec: recorded in the manifest.
        shard_rows: captions per shard.
        batch_size: captions per batch of the encoder.
        dtype: float32 or float16, of the embeddings on disk.
        progress: called with (stage, done, total).

    Raises:
        RetrievalError: settings that cannot be, two builds of FAISS, or `out` being something else than an index.
    """
    check_settings(out, shard_rows=shard_rows, batch_size=batch_size, dtype=dtype)
    check_faiss()
    plan = Manifest(
        corpus_sha256=corpus.sha256,
        read=corpus.read,
        duplicates=corpus.duplicates,
        without_caption=corpus.without_caption,
        rows=len(corpus.texts),
        encoder=spec.identity(),
        encoder_kind=spec.kind,
        encoder_name=spec.name,
        encoder_pretrained=spec.pretrained,
        golden_embedding=tuple(float(value) for value in golden_embedding(encoder)),
        width=encoder.width,
        dtype=dtype,
        shard_rows=shard_rows,
        sha256={},
    )
    work = out.with_name(out.name + ".building")
    _prepare(work, plan, batch_size)
    write_captions(work, corpus)
    _encode_missing(work, plan, corpus, encoder, batch_size, progress)
    if progress is not None:
        progress("index", 0, plan.rows)
    write_flat(work / FLAT_INDEX, open_shards(work, plan), plan.width)
    if progress is not None:
        progress("index", plan.rows, plan.rows)
    files = [CAPTIONS, FLAT_INDEX, *(f"shards/{shard_path(work, n).name}" for n in range(plan.shards))]
    manifest = Manifest(**{**vars(plan), "sha256": {name: file_sha256(work / name) for name in files}})
    write_manifest(work, manifest)
    (work / PLAN).unlink()
    _move_into_place(work, out)
    return manifest


def check_settings(out: Path, *, shard_rows: int, batch_size: int, dtype: str) -> None:
    """Raise RetrievalError for impossible settings, or when `out` is something that must not be replaced."""
    for name, value in (("shard_rows", shard_rows), ("batch_size", batch_size)):
        if value < 1:
            raise RetrievalError(f"{name} must be positive", given=value, remedy=f"index.{name}=256")
    if dtype not in DTYPES:
        raise RetrievalError("Unknown dtype", given=dtype, allowed=", ".join(DTYPES), remedy="index.dtype=float32")
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise RetrievalError(
            "The output directory holds something else than an index",
            given=out,
            remedy="out=DIR of a new or empty directory",
        )


def _prepare(work: Path, plan: Manifest, batch_size: int) -> None:
    """Keep what an earlier, interrupted run of the same plan left in `work`, else start afresh."""
    golden = [round(value, 5) for value in plan.golden_embedding]
    fields = {**vars(plan), "golden_embedding": golden, "batch_size": batch_size}
    text = json.dumps(fields, indent=2, sort_keys=True)
    path = work / PLAN
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        for unfinished in work.rglob(".*.tmp"):
            unfinished.unlink()
        return
    if work.exists():
        shutil.rmtree(work)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _encode_missing(
    work: Path, plan: Manifest, corpus: Corpus, encoder: Encoder, batch_size: int, progress: Progress | None
) -> None:
    for number in range(plan.shards):
        start = number * plan.shard_rows
        texts = corpus.texts[start : start + plan.shard_rows]

        def report(done: int, start: int = start) -> None:
            if progress is not None:
                progress("encode", start + done, plan.rows)

        if not shard_path(work, number).exists():
            embeddings = encoder.encode_texts(texts, batch_size=batch_size, report=report)
            _check_finite(embeddings, texts)
            write_shard(work, number, embeddings.astype(plan.dtype))
        report(len(texts))


def _check_finite(embeddings: np.ndarray, texts: tuple[str, ...]) -> None:
    broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(broken):
        raise RetrievalError(
            "The encoder gave vectors that are not finite",
            given=f"{len(broken)} captions, the first one {texts[broken[0]]!r}",
            remedy="encoder.precision=fp32",
        )


def _move_into_place(work: Path, out: Path) -> None:
    retired = out.with_name(out.name + ".old")
    if retired.exists():
        shutil.rmtree(retired)
    if out.exists():
        os.rename(out, retired)
    os.rename(work, out)
    if retired.exists():
        shutil.rmtree(retired)
