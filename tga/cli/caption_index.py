"""What commands do with the caption index: build it where it is missing, and join a data set to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from retrieval_index.build import build_index, check_out
from retrieval_index.checks import check_k
from retrieval_index.corpus import hash_corpus
from retrieval_index.encode import EncoderSource
from retrieval_index.encoders import LOCAL_DIR, Encoder, EncoderSpec, choose_device, load_encoder
from retrieval_index.engines import Engine, LocalEngine
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import check_faiss
from retrieval_index.index import CaptionIndex
from retrieval_index.manifest import MANIFEST, IndexRecord, Manifest, read_manifest
from retrieval_index.queries import find_pictures, picture_queries, read_queries
from retrieval_index.readers import find_files
from retrieval_index.recall import Queries
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job
from tga.cli.locks import exclusive
from tga.data.neighbours import Joined, fingerprint, join_neighbours, query_picture, read_fingerprint
from tga.data.sample import Sample
from tga.errors import UserError
from tga.terminal import say

STAGES = {
    "read": "Reading caption files",
    "encode": "Encoding captions",
    "index": "Writing the index",
    "recall": "Measuring recall",
    "neighbours": "Searching neighbours",
    "verify": "Checking files",
}
NOT_OF_A_BUILD = ("queries", "gpus")  # keys of the group `index` that are no fields of IndexSettings


@dataclass(frozen=True)
class EncoderChoice:
    """The config group `encoder`, as values; the model is loaded on first use and once."""

    kind: str
    name: str | None
    pretrained: str | None = None
    device: str = "auto"
    precision: str = "fp32"

    @property
    def spec(self) -> EncoderSpec:
        """Which encoder; a directory by its absolute path, so that an index finds its encoder from anywhere."""
        name = self.name or ""
        if name.startswith(LOCAL_DIR):
            name = f"{LOCAL_DIR}{Path(name.removeprefix(LOCAL_DIR)).absolute()}"
        return EncoderSpec(self.kind, name, self.pretrained)

    @property
    def source(self) -> EncoderSource:
        """How other processes load it."""
        return EncoderSource(self.spec, self.device, self.precision)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder."""
        return load_encoder(self.spec, device=self.device, precision=self.precision)


def index_settings(group: dict[str, Any]) -> IndexSettings:
    """The config group `index` as checked settings.

    Raises:
        RetrievalError: settings that cannot be.
        UserError: keys that there are not.
    """
    values = {key: value for key, value in group.items() if key not in NOT_OF_A_BUILD}
    unknown = sorted(set(values) - set(IndexSettings.__dataclass_fields__))
    if unknown:
        allowed = ", ".join(IndexSettings.__dataclass_fields__)
        raise UserError("The group index has no such key", given=unknown, allowed=allowed, remedy="index.kind=auto")
    settings = IndexSettings(**values)
    settings.check()
    return settings


def held_out_queries(
    group: dict[str, Any], choice: EncoderChoice, samples: Sequence[Sample] | None
) -> Callable[[], Queries] | None:
    """What the recall is measured with: `index.queries`, else the pictures of a data set, else None.

    Raises:
        RetrievalError: there is nothing at `index.queries`.
    """
    settings, place = index_settings(group), group.get("queries")
    options = {"count": settings.recall_queries, "batch_size": settings.batch_size}
    if place is not None:
        if not str(place).endswith(".npy"):
            find_pictures(place)
        return lambda: read_queries(place, choice.encoder, **options)
    pictures = [sample for sample in samples or () if sample.images]
    if not pictures or choice.kind == "sentence_transformers":
        return None
    return lambda: picture_queries([query_picture(sample) for sample in pictures], choice.encoder, **options)


def ensure_index(
    captions: Sequence[str | Path],
    out: Path,
    choice: EncoderChoice,
    *,
    k: int = 1,
    overwrite: bool = True,
    samples: Sequence[Sample] | None = None,
    engine: Engine | None = None,
    **group: Any,
) -> bool:
    """Build the index of caption files at `out` unless it is there; returns whether it was built.

    It is there when its manifest names the same captions, the same encoder and the same storage settings; what has been
    added to it since does not matter, nor which kind of FAISS index it has, unless `group` asks for one.

    Args:
        captions: caption files, folders, patterns.
        out: the index directory.
        choice: the encoder.
        k: neighbours that will be asked for; a corpus with fewer captions is refused.
        overwrite: replace an index of something else; False refuses.
        samples: a data set whose pictures measure the recall of an approximate index.
        engine: where the work is done; None: in this process.
        group: the config group `index`.

    Raises:
        RetrievalError: captions, encoder or settings that cannot be used.
        UserError: an index of something else at `out`, with `overwrite` False; one of another kind than is asked
            for, or below the recall.
    """
    files = find_files(captions)
    choice.spec.check()
    settings = index_settings(group)
    check_out(out)
    check_faiss()
    queries = held_out_queries(group, choice, samples)
    sha256 = hash_corpus(files, settings.keys, settings.max_characters)
    found = _manifest_at(out, overwrite)
    if found is not None:
        is_there = (found.encoder.identity, found.dtype, found.shard_rows) == (
            choice.spec.identity(), settings.dtype, settings.shard_rows,
        )  # fmt: skip
        if is_there and found.sources[0].sha256 == sha256:
            check_k(k, found.rows)
            _check_is_wanted(found.index, settings, out)
            return False
        if not overwrite:
            raise UserError(
                "The index at this place was made of other captions, with another encoder or with other settings",
                given=f"{out}: {found.encoder.name}, {found.rows} captions, {found.dtype}",
                remedy="out=DIR of a new directory, mode=append to add captions, or overwrite=true to replace it",
            )
    with progress_bars() as progress:
        job = Job(
            choice.encoder, choice.source, settings, queries, k, engine or LocalEngine(), progress, progress.announce
        )
        build_index(files, out, job, corpus_sha256=sha256)
    return True


def _check_is_wanted(index: IndexRecord, settings: IndexSettings, out: Path) -> None:
    """Raise UserError where an index that is there is of another kind than is asked for, or below the recall."""
    kind, recall = index.plan["kind"], index.recall
    least = settings.target_recall if settings.accept_recall is None else settings.accept_recall
    if settings.kind in ("auto", kind) and recall.value >= least:
        return
    raise UserError(
        "The captions are indexed already, but not as is asked for now",
        given=f"{out}: index.kind={kind} with recall@{recall.k} {recall.value:g}",
        allowed=f"index.kind={settings.kind} with a recall of {least:g}",
        remedy=f"mode=replan index.kind={settings.kind} without captions= encodes nothing again; or index.kind=auto, "
        "index.accept_recall=0",
    )


def ensure_neighbours(
    index_dir: Path,
    data: Sequence[Sample],
    out: Path,
    choice: EncoderChoice,
    *,
    k: int = 10,
    batch_size: int = 256,
    search: str = "exact",
) -> Joined | None:
    """Join a data set to an index; returns None when `out` bears the fingerprint of the same inputs already.

    Raises:
        RetrievalError, UserError: as `join_neighbours`, and an index of another encoder.
    """
    index = CaptionIndex.open(index_dir, spec=choice.spec)

    def is_there() -> bool:
        return read_fingerprint(out) == fingerprint(index.manifest, data, k, search)

    if is_there():  # nothing is written then, so that it may lie where nothing can be
        return None
    with exclusive(out), progress_bars() as progress:
        if is_there():  # made while this process waited
            return None
        return join_neighbours(
            index_dir,
            data,
            out,
            k=k,
            encoder=choice.encoder,
            batch_size=batch_size,
            device=choose_device(choice.device),
            search=search,
            progress=progress,
        )


class StageBars:
    """One progress bar per stage, and lines above them; called with (stage, done, total)."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage."""
        if stage not in self._tasks:
            self._bars.start()  # with the first stage: an error before it stands alone on stderr
            self._tasks[stage] = self._bars.add_task(STAGES[stage], total=total)
        self._bars.update(self._tasks[stage], completed=done)

    def announce(self, line: str) -> None:
        """Print a line on stdout."""
        say(line)


@contextmanager
def progress_bars() -> Iterator[StageBars]:
    """Draw one bar per stage on stderr."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    bars = Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
    try:
        yield StageBars(bars)
    finally:
        if bars.live.is_started:
            bars.stop()


def _manifest_at(out: Path, overwrite: bool) -> Manifest | None:
    """The manifest of an index at `out`; None where there is none, or one that cannot be read and may be replaced."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        return read_manifest(out)
    except RetrievalError:
        if overwrite:
            return None
        raise
