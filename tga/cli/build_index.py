"""tga-build-index: build a caption index, join a data set to it, ask it with a picture.

`ensure_index` and `ensure_neighbours` do the first two for other commands, which skip what is there already.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from retrieval_index.build import build_index, check_settings
from retrieval_index.captions import check_files, hash_files, read_corpus
from retrieval_index.encoders import LOCAL_DIR, Encoder, EncoderSpec, choose_device, load_encoder
from retrieval_index.exact import check_k
from retrieval_index.faiss_flat import check_faiss
from retrieval_index.index import CaptionIndex
from retrieval_index.store import MANIFEST, read_manifest
from tga.cli.common import hydra_command, plain, write_summary
from tga.cli.locks import exclusive
from tga.data.llava_json import load_llava_json
from tga.data.neighbours import Joined, fingerprint, join_neighbours, read_fingerprint
from tga.data.sample import Sample
from tga.errors import UserError

STAGES = {"encode": "Encoding captions", "index": "Writing the index", "neighbours": "Searching neighbours"}


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

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The loaded encoder."""
        return load_encoder(self.spec, device=self.device, precision=self.precision)


def ensure_index(
    captions: Sequence[Path],
    out: Path,
    choice: EncoderChoice,
    *,
    shard_rows: int = 100_000,
    batch_size: int = 256,
    dtype: str = "float32",
    k: int = 1,
    overwrite: bool = True,
) -> bool:
    """Build the index of caption files at `out` unless it is there; returns whether it was built.

    It is there when its manifest names the same bytes of captions, the same encoder and the same storage settings.

    Args:
        captions: the caption files.
        out: the index directory.
        choice: the encoder.
        shard_rows, batch_size, dtype: as in `build_index`.
        k: neighbours that will be asked for; a corpus with fewer captions is refused before anything is written.
        overwrite: replace an index of something else; False refuses.

    Raises:
        RetrievalError: captions, encoder or settings that cannot be used.
        UserError: an index of something else at `out`, with `overwrite` False.
    """
    files = check_files(captions)
    choice.spec.check()
    check_settings(out, shard_rows=shard_rows, batch_size=batch_size, dtype=dtype)
    check_faiss()
    if (out / MANIFEST).is_file():
        found = read_manifest(out)
        is_there = (found.encoder, found.dtype, found.shard_rows) == (choice.spec.identity(), dtype, shard_rows)
        if is_there and found.corpus_sha256 == hash_files(files):
            check_k(k, found.rows)
            return False
        if not overwrite:
            raise UserError(
                "The index at this place was made of other captions, with another encoder or with other settings",
                given=f"{out}: {found.encoder_name}, {found.rows} captions, {found.dtype}",
                remedy="out=DIR of a new directory, or overwrite=true to replace it",
            )
    corpus = read_corpus(files)
    check_k(k, len(corpus.texts))
    with progress_bars() as progress:
        build_index(
            corpus, out, choice.encoder, choice.spec,
            shard_rows=shard_rows, batch_size=batch_size, dtype=dtype, progress=progress,
        )  # fmt: skip
    return True


def ensure_neighbours(
    index_dir: Path,
    data: Sequence[Sample],
    out: Path,
    choice: EncoderChoice,
    *,
    k: int = 10,
    batch_size: int = 256,
) -> Joined | None:
    """Join a data set to an index; returns None when `out` bears the fingerprint of the same inputs already.

    Raises:
        RetrievalError, UserError: as `join_neighbours`, and an index of another encoder.
    """
    index = CaptionIndex.open(index_dir, spec=choice.spec)
    if read_fingerprint(out) == fingerprint(index.manifest, data, k):
        return None
    with progress_bars() as progress:
        return join_neighbours(
            index_dir,
            data,
            out,
            k=k,
            encoder=choice.encoder,
            batch_size=batch_size,
            device=choose_device(choice.device),
            progress=progress,
        )


@contextmanager
def progress_bars() -> Iterator[Any]:
    """Yield a `progress(stage, done, total)` that draws one bar per stage on stderr."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES[stage], total=total)
            bars.update(tasks[stage], completed=done)

        yield progress


def print_neighbours(index_dir: Path, picture: Path, choice: EncoderChoice, *, k: int) -> None:
    """Print the `k` captions nearest to a picture.

    Raises:
        RetrievalError: an index of another encoder, `k` larger than the corpus, a picture that cannot be decoded.
    """
    index = CaptionIndex.open(index_dir, spec=choice.spec)
    check_k(k, len(index))
    index.check_encoder(choice.encoder)
    scores, rows = index.search(choice.encoder.encode_images([picture], batch_size=1), k)
    table = Table(title=escape(str(picture)))
    for heading in ("score", "id", "caption"):
        table.add_column(heading, overflow="fold")
    for score, identifier, caption in zip(scores[0], index.ids(rows[0]), index.captions(rows[0]), strict=True):
        table.add_row(f"{score:.4f}", escape(identifier), escape(caption))
    Console().print(table)


@hydra_command("build_index")
def main(config: DictConfig) -> Path:
    """Build, join and ask, as far as the config says; what is wrong is found before anything is written."""
    started = time.perf_counter()
    settings = plain(config)
    out = Path(settings["out"])
    captions, query, data = settings["captions"], settings["query"], settings["neighbours"]
    if captions is None and query is None and data is None:
        raise UserError(
            "There is nothing to do",
            remedy="captions=PATH builds an index, neighbours=DATA.json and query=PICTURE use one",
        )
    if query is not None and not Path(query).is_file():
        raise UserError("The picture does not exist", given=query, remedy="query=PATH of a picture")
    root = Path(settings["image_root"]) if settings["image_root"] else Path(data).parent if data else None
    samples = load_llava_json(Path(data), root) if data is not None and root is not None else None
    choice = EncoderChoice(**settings["encoder"])
    if captions is None and choice.name is None:
        spec = CaptionIndex(out).spec
        choice = EncoderChoice(spec.kind, spec.name, spec.pretrained, choice.device, choice.precision)
    summary: dict[str, Any] = {}
    with exclusive(out.absolute()) if captions is not None or data is not None else nullcontext():
        if captions is not None:
            files = [captions] if isinstance(captions, str) else captions
            k = settings["k"] if query or data else 1
            built = ensure_index(
                [Path(file) for file in files], out, choice, **settings["index"], k=k, overwrite=settings["overwrite"]
            )
            summary |= {"index_built": built, "index_s": round(time.perf_counter() - started, 3)}
        if samples is not None:
            summary |= _join(settings, out, samples, choice)
    if query is not None:
        print_neighbours(out, Path(query), choice, k=settings["k"])
    if summary:
        write_summary(out, _counts(out) | summary | {"total_s": round(time.perf_counter() - started, 3)}, config)
    return out


def _join(settings: dict[str, Any], out: Path, samples: Sequence[Sample], choice: EncoderChoice) -> dict[str, Any]:
    started = time.perf_counter()
    target = Path(settings["neighbours_out"] or out / "neighbours.parquet")
    joined = ensure_neighbours(
        out, samples, target, choice, k=settings["k"], batch_size=settings["index"]["batch_size"]
    )
    summary: dict[str, Any] = {"neighbours_written": joined is not None, "neighbours_k": settings["k"]}
    if joined is None:
        print(f"The neighbours are up to date: {target}")
    else:
        print(f"Neighbours of {joined.samples} samples: {target}")
        summary |= {"neighbours_samples": joined.samples, "neighbours_without_query": joined.without_query}
    return summary | {"neighbours_s": round(time.perf_counter() - started, 3)}


def _counts(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    return {
        "captions_read": manifest.read,
        "captions": manifest.rows,
        "captions_duplicate": manifest.duplicates,
        "captions_without_text": manifest.without_caption,
        "width": manifest.width,
        "shards": manifest.shards,
    }


if __name__ == "__main__":
    main()
