"""What building and growing share: the work directory, reading, encoding, and what becomes of the work at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.checks import check_k
from retrieval_index.corpus import READ, ROWS_WRITTEN, Written, read_file, refuse_empty, write_rows
from retrieval_index.encode import EncoderSource, read_shard
from retrieval_index.encoders import GOLDEN_COSINE, Encoder
from retrieval_index.engines import Engine, LocalEngine
from retrieval_index.errors import RetrievalError
from retrieval_index.files import remove_unfinished, write_json
from retrieval_index.locks import lock_beside
from retrieval_index.manifest import EncoderRecord, Shard, Source
from retrieval_index.ownership import entries, read_object, remove_ours
from retrieval_index.recall import Queries
from retrieval_index.settings import IndexSettings
from retrieval_index.store import FOLDERS, IDENTITY, is_work_file

# stage ("read", "encode", "index", "recall"), done, total
Progress = Callable[[str, int, int], None]


def _silent(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Job:
    """How an index is built or grown.

    Args:
        encoder: loaded.
        source: which encoder it is, and how other processes load it.
        settings: of shards, planner and recall.
        queries: gives held-out queries, called at most once, where the plan is not exact. None: captions of the corpus
            ask, for an encoder that reads text only; for others an exact index is made.
        neighbours: that will be asked for; a smaller corpus is refused.
        engine: where the work is done.
        progress: called with (stage, done, total).
        announce: is told the plan, before anything is encoded.
    """

    encoder: Encoder
    source: EncoderSource
    settings: IndexSettings = IndexSettings()
    queries: Callable[[], Queries] | None = None
    neighbours: int = 1
    engine: Engine = field(default_factory=LocalEngine)
    progress: Progress = _silent
    announce: Callable[[str], None] = _silent

    @property
    def measurable(self) -> bool:
        """Whether recall can be measured with queries of the kind that will be asked."""
        return self.queries is not None or not self.encoder.encodes_images


def work_identity(sha256: str, record: EncoderRecord, settings: IndexSettings, **more: Any) -> dict[str, Any]:
    """What decides the rows and embeddings of a work directory, and nothing else."""
    return {
        "corpus": sha256,
        "encoder": record.identity,
        "golden": [round(value, 5) for value in record.golden_sentence],
        "batch_size": settings.batch_size,
        "dtype": settings.dtype,
        "shard_rows": settings.shard_rows,
        **more,
    }


def prepare(work: Path, identity: dict[str, Any], announce: Callable[[str], None]) -> None:
    """Keep what an earlier, interrupted run of the same identity left in `work`, else say so and start afresh.

    The golden vector is compared as everywhere, by its cosine: another device gives another last digit.

    Raises:
        RetrievalError: there is something in `work` that no build or growth has left there; nothing is removed then.
    """
    path = work / IDENTITY
    found = read_object(path)
    other = sorted(key for key in identity.keys() | found.keys() if not _same(key, found.get(key), identity.get(key)))
    if found and not other:
        remove_unfinished(work)
        return
    if work.exists():
        if any(work.rglob("*.npy")):
            announce(f"What an interrupted build left in {work} is of another {', '.join(other)}: it begins afresh")
        refuse_other_files(work)
        discard(work)
    write_json(path, identity)


def work_lock(out: Path) -> Path:
    """The file of the lock that a build and a growth of the index at `out` hold."""
    return lock_beside(out.with_name(f"{out.name}.building"))


def refuse_other_files(work: Path) -> None:
    """Raise RetrievalError where a work directory is not one, or holds more than work.

    Its mark is :data:`IDENTITY`, which is written first and removed last.
    """
    is_marked = {"corpus", "encoder"} <= read_object(work / IDENTITY).keys() or "replaced" in read_object(
        work / IDENTITY
    )
    others = [name for name in entries(work) if not (is_work_file(name) and (is_marked or IDENTITY in name))]
    if others:
        raise RetrievalError(
            "The work directory of an index holds something that no build has left there",
            given=f"{work}: {', '.join(others[:3])}" + (f" and {len(others) - 3} more" if len(others) > 3 else ""),
            allowed="nothing, or what an interrupted build or growth left",
            remedy="move it away, or out=ANOTHER_DIRECTORY",
        )


def discard(work: Path, part: str = "") -> None:
    """Remove the files of a work directory, or of its folder `part`; its mark goes last. Files of others stay."""
    remove_ours(work, lambda name: is_work_file(name) and name.startswith(part) and name != IDENTITY)
    if not part:
        (work / IDENTITY).unlink(missing_ok=True)
        for folder in (*(work / name for name in FOLDERS), work):
            with suppress(OSError):  # there is none, or files of others are in it
                folder.rmdir()


def _same(key: str, then: Any, now: Any) -> bool:
    if key != "golden" or not then or not now or len(then) != len(now):
        return bool(then == now)
    first, second = np.asarray(then), np.asarray(now)
    return bool(first @ second >= GOLDEN_COSINE * np.linalg.norm(first) * np.linalg.norm(second))


def read_stage(
    files: Sequence[Path],
    work: Path,
    job: Job,
    *,
    known: Sequence[Path] = (),
    generation: int = 0,
) -> Written:
    """Caption files -> rows of the shards in `work`; see `corpus.write_rows` for the arguments of an index that grows.

    Raises:
        RetrievalError: a file that cannot be read, or no caption at all.
    """
    try:
        if not (work / ROWS_WRITTEN).is_file():
            for number, file in enumerate(files):
                if number:
                    job.progress("read", number, len(files))
                read_file(file, work, number, job.settings.keys, job.settings.max_characters)
        written = write_rows(
            work,
            len(files),
            known,
            first_shard=len(known),
            generation=generation,
            shard_rows=job.settings.shard_rows,
            memory=job.settings.budget // 4,
        )
        refuse_empty(files, written)
        if not known:
            check_k(job.neighbours, written.rows)
    except RetrievalError:
        if (work / ROWS_WRITTEN).is_file() or not any((work / READ).glob("*.json")):  # nothing that took long is lost
            discard(work)
        raise
    job.progress("read", len(files), len(files))
    return written


def encode_stage(work: Path, rows: int, job: Job, *, first_shard: int = 0) -> tuple[Shard, ...]:
    """Rows of the shards in `work` -> their embeddings."""
    size = job.settings.shard_rows
    sizes = {first_shard + n: min(size, rows - start) for n, start in enumerate(range(0, rows, size))}
    job.engine.encode(
        work,
        sizes,
        job.encoder,
        job.source,
        batch_size=job.settings.batch_size,
        dtype=job.settings.dtype,
        report=lambda done: job.progress("encode", done, rows),
    )
    return tuple(read_shard(work, number) for number in sizes)


def source_of(sha256: str, written: Written) -> Source:
    """What a manifest tells of the files that were read."""
    counts = written.counts
    return Source(
        sha256=sha256,
        read=counts.read,
        duplicates=written.duplicates,
        without_caption=counts.without_caption,
        too_long=counts.too_long,
        rows=written.rows,
    )


def tidy(work: Path) -> None:
    """Remove what only the work needed, but for its mark."""
    remove_unfinished(work)
    remove_ours(work, lambda name: name.startswith("encoded/") and is_work_file(name))
    (work / ROWS_WRITTEN).unlink(missing_ok=True)
