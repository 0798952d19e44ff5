"""Growing an index: new captions become new shards, rows keep their numbers, and the FAISS file gets a new generation.

Everything new is made in `DIR.growing`. When it is complete its files are moved into the index, where the old manifest
does not name them, and the new manifest takes the place of the old one: readers see the one version or the other, and
those that have the old one open keep it. Killed at any moment and started again, it goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retrieval_index.corpus import hash_corpus
from retrieval_index.faiss_env import check_faiss, faiss_threads
from retrieval_index.files import file_sha256
from retrieval_index.generation import Growth, make_generation, plan_index, plan_of
from retrieval_index.locks import locked
from retrieval_index.manifest import MANIFEST, IndexRecord, Manifest, Shard, read_manifest, write_manifest
from retrieval_index.ownership import entries, read_object, remove_ours
from retrieval_index.planner import grown
from retrieval_index.recall import BelowTarget
from retrieval_index.same_encoder import check_encoder
from retrieval_index.stages import (
    Job,
    discard,
    encode_stage,
    prepare,
    read_stage,
    source_of,
    work_identity,
    work_lock,
)
from retrieval_index.store import IDENTITY, INDEX_FILE, duplicates_path, embeddings_path, open_shards, rows_path
from retrieval_index.vectors import Vectors


def append_captions(files: Sequence[Path], out: Path, job: Job) -> Manifest:
    """Add the captions of some files to the index at `out`.

    Captions that are there already count as duplicates. Files that were added before (by their content) are not added
    again. The recall is measured anew; where the plan no longer fits the memory budget or the recall is missed, the
    FAISS file is planned and made anew from the embeddings.

    Args:
        files: caption files, see `find_files`.
        out: the index directory.
        job: the encoder of the index, and how; how embeddings are stored is the index' own.

    Raises:
        RetrievalError: no index there, another encoder, captions that cannot be used, no plan that fits, or a recall
            below the target; the index is then as it was.
    """
    sha256 = hash_corpus(files, job.settings.keys, job.settings.max_characters)
    return _next_version(out.resolve(), job, files, sha256)


def plan_again(out: Path, job: Job) -> Manifest:
    """Make the FAISS file of the index at `out` anew by the settings of `job`; captions and embeddings stay.

    Raises:
        RetrievalError: no index there, no plan that fits, or a recall below the target; the index is then as it was.
    """
    return _next_version(out.resolve(), job, (), None)


def _next_version(out: Path, job: Job, files: Sequence[Path], sha256: str | None) -> Manifest:
    """`out` is no link: what is made beside it has to be on its disk."""
    job.settings.check()
    check_faiss()
    work = out.with_name(out.name + ".growing")
    with locked(work_lock(out), out):
        _commit(work, out)
        old = read_manifest(out)
        if sha256 in [known.sha256 for known in old.sources]:
            return old
        _remove_strays(out, old)
        open_shards(out, old)
        check_encoder(old.encoder, job.encoder, out)
        job = replace(job, settings=replace(job.settings, dtype=old.dtype, shard_rows=old.shard_rows))
        base = file_sha256(out / MANIFEST)
        prepare(work, work_identity(sha256 or "", old.encoder, job.settings, base=base), job.announce)
        manifest = old if sha256 is None else _with_captions(out, work, old, job, files, sha256)
        if sha256 is None or manifest.rows > old.rows:
            index = _next_generation(out, work, old, _vectors(out, work, old, manifest), job, anew=sha256 is None)
            manifest = replace(manifest, index=index)
        write_manifest(work, manifest)
        _commit(work, out)
    return read_manifest(out)


def _with_captions(out: Path, work: Path, old: Manifest, job: Job, files: Sequence[Path], sha256: str) -> Manifest:
    """The manifest with the new shards, which are made in `work`."""
    count, generation = len(old.shards), len(old.sources)
    known = [rows_path(out, number) for number in range(count)]
    written = read_stage(files, work, job, known=known, generation=generation)
    shards: tuple[Shard, ...] = ()
    if written.rows:
        plan_index(
            old.rows + written.rows, old.width, job.settings, measurable=job.measurable
        )  # refuses before encoding
        shards = encode_stage(work, written.rows, job, first_shard=count)
    duplicates = file_sha256(duplicates_path(work, generation))
    return replace(
        old,
        sources=(*old.sources, source_of(sha256, written)),
        shards=(*old.shards, *shards),
        duplicates_sha256=(*old.duplicates_sha256, duplicates),
    )


def _vectors(out: Path, work: Path, old: Manifest, new: Manifest) -> Vectors:
    count = len(old.shards)
    return Vectors([embeddings_path(out if n < count else work, n) for n in range(len(new.shards))])


def _next_generation(out: Path, work: Path, old: Manifest, vectors: Vectors, job: Job, *, anew: bool) -> IndexRecord:
    """The old FAISS file with the new rows, where that fits and reaches the recall; else a new one."""
    number, budget, threads = old.index.generation + 1, job.settings.budget, faiss_threads()
    plan = None if anew else grown(plan_of(old.index), len(vectors), budget)
    if plan is not None and (plan.exact or job.measurable or job.settings.accept_recall == 0):
        job.announce(f"{plan.describe(budget, threads)}; {len(vectors) - old.rows} rows are new")
        try:
            return make_generation(work, number, vectors, plan, job, Growth(out / old.index.file, old.rows))
        except BelowTarget as error:
            job.announce(f"Planned anew. {error.problem}")
    plan = plan_index(len(vectors), vectors.width, job.settings, measurable=job.measurable)
    job.announce(plan.describe(budget, threads))
    return make_generation(work, number, vectors, plan, job)


def _commit(work: Path, out: Path) -> None:
    """Move what is complete in `work` into the index, unless the index has become another one meanwhile."""
    base = read_object(work / IDENTITY).get("base")
    if not (work / MANIFEST).is_file() or base is None:
        return
    if base == file_sha256(out / MANIFEST):
        new = read_manifest(work)
        old = read_manifest(out)
        for name in sorted(entries(work)):
            if INDEX_FILE.fullmatch(name):
                os.replace(work / name, out / name)
        os.replace(work / MANIFEST, out / MANIFEST)
        if new.index.file != old.index.file:
            (out / old.index.file).unlink(missing_ok=True)
    discard(work)


def _remove_strays(out: Path, manifest: Manifest) -> None:
    """Remove files that a killed growth moved into the index and no manifest came to name."""
    named = {out / manifest.index.file}
    for number in range(len(manifest.shards)):
        named |= {embeddings_path(out, number), rows_path(out, number)}
    named |= {duplicates_path(out, number) for number in range(len(manifest.sources))}
    remove_ours(out, lambda name: INDEX_FILE.fullmatch(name) is not None and out / name not in named)
