"""Building an index: read -> encode -> index -> manifest, in a directory that takes its name when it is complete.

The work stands in `DIR.building`. Killed at any moment and started again with the same captions, encoder and
settings, it does what is missing, and the result is the same byte for byte: every file is written under a temporary
name and depends on nothing but what it is made of. With other captions or another encoder the work starts afresh;
with another plan of the index only the index does, and embeddings stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retrieval_index.corpus import hash_corpus
from retrieval_index.encoders import describe_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import check_faiss, faiss_threads
from retrieval_index.files import file_sha256, write_json
from retrieval_index.generation import make_generation, plan_index
from retrieval_index.locks import locked
from retrieval_index.manifest import MANIFEST, EncoderRecord, Manifest, is_manifest, read_manifest, write_manifest
from retrieval_index.ownership import read_object, replace_directory
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job, encode_stage, prepare, read_stage, source_of, tidy, work_identity, work_lock
from retrieval_index.store import IDENTITY, duplicates_path, is_index_file
from retrieval_index.vectors import Vectors


def build_index(files: Sequence[Path], out: Path, job: Job, *, corpus_sha256: str | None = None) -> Manifest:
    """Build the index of caption files at `out`; an index already there is replaced when the new one is complete.

    Args:
        files: the caption files, see `find_files`.
        out: the index directory.
        job: encoder, settings, and how.
        corpus_sha256: of the files where it is known (`hash_corpus`).

    Raises:
        RetrievalError: captions or settings that cannot be used, two builds of FAISS, `out` being something else than
            an index, no plan that fits, an index below its recall, or a full disk.
    """
    settings = job.settings
    settings.check()
    check_out(out)
    check_faiss()
    out = out.resolve()  # where `out` is a link, the directory behind it is replaced
    work = out.with_name(out.name + ".building")
    record = describe_encoder(job.encoder, job.source.spec)
    sha256 = corpus_sha256 or hash_corpus(files, settings.keys, settings.max_characters)
    with locked(work_lock(out), out):
        if not _is_complete(work, sha256, record, settings):
            prepare(work, work_identity(sha256, record, settings), job.announce)
            written = read_stage(files, work, job)
            plan = plan_index(written.rows, record.width, settings, measurable=job.measurable)
            job.announce(plan.describe(settings.budget, faiss_threads()))
            shards = encode_stage(work, written.rows, job)
            manifest = Manifest(
                encoder=record,
                sources=(source_of(sha256, written),),
                shards=shards,
                duplicates_sha256=(file_sha256(duplicates_path(work, 0)),),
                dtype=settings.dtype,
                shard_rows=settings.shard_rows,
                index=make_generation(work, 0, Vectors.of_shards(work, shards), plan, job),
            )
            write_manifest(work, manifest)
        tidy(work)
        move_into_place(work, out)
    return read_manifest(out)


def check_out(out: Path, option: str = "out") -> None:
    """Raise RetrievalError when `out`, given by a command's `option`, is something that must not be replaced.

    An index may be, of whatever version; that a directory holds some manifest.json makes it none.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())) or is_manifest(out / MANIFEST):
        return
    raise RetrievalError(
        "The output directory holds something else than an index",
        given=out,
        remedy=f"{option}=DIR of a new or empty directory",
    )


def move_into_place(work: Path, out: Path) -> None:
    """Let the finished index in `work` take the place of what stands at `out`; files there that are no index' stay.

    The old index has its mark before it stands where work is done: half removed, it is neither taken for finished work
    nor for something of another's.
    """
    if (out / MANIFEST).is_file():
        write_json(out / IDENTITY, {"replaced": True})
    replace_directory(work, out, lambda _: is_index_file)
    (out / IDENTITY).unlink()


def _is_complete(work: Path, sha256: str, record: EncoderRecord, settings: IndexSettings) -> bool:
    """Whether `work` holds what is asked for and was stopped before it took its name."""
    if not (work / MANIFEST).is_file() or "corpus" not in read_object(work / IDENTITY):
        return False
    found = read_manifest(work)
    made = (found.sources[0].sha256, found.encoder.identity, found.dtype, found.shard_rows, found.index.recall.target)
    asked = (sha256, record.identity, settings.dtype, settings.shard_rows, settings.target_recall)
    return made == asked and found.index.plan["memory_budget"] == settings.budget
