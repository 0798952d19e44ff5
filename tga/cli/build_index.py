"""tga-build-index: build a caption index, let it grow, join a data set to it, ask it with a picture."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Table

from retrieval_index.checks import check_count, check_k
from retrieval_index.engines import Engine, LocalEngine
from retrieval_index.faiss_env import check_faiss
from retrieval_index.faiss_open import check_spread
from retrieval_index.grow import append_captions, plan_again
from retrieval_index.index import CaptionIndex
from retrieval_index.manifest import read_manifest
from retrieval_index.picture_files import opened, reason
from retrieval_index.planner import NAMES
from retrieval_index.readers import find_files
from retrieval_index.stages import Job
from retrieval_index.verify import verify_index
from tga.cli.caption_index import (
    EncoderChoice,
    ensure_index,
    ensure_neighbours,
    held_out_queries,
    index_settings,
    progress_bars,
)
from tga.cli.common import hydra_command, plain, write_summary
from tga.cli.join_data import read_joined
from tga.cli.locks import exclusive
from tga.data.neighbours import check_search
from tga.data.sample import Sample
from tga.errors import UserError
from tga.terminal import literal, say

__all__ = ["EncoderChoice", "ensure_index", "ensure_neighbours", "main"]
MODES = ("build", "append", "replan", "verify")
ENGINES = ("local", "ray")
TEXTS = ("captions", "out", "neighbours", "image_root", "neighbours_bad_list", "neighbours_out", "query")


@hydra_command("build_index")
def main(config: DictConfig) -> Path:
    """Build, grow, join and ask, as far as the config says; what is wrong is found before anything is written."""
    started = time.perf_counter()
    settings = plain(config) | {key: _texts(plain(config)[key]) for key in TEXTS}
    out = Path(settings["out"])
    captions, query, data = settings["captions"], settings["query"], settings["neighbours"]
    _check(settings, out)
    samples = None
    if data is not None:
        samples = read_joined(
            data, settings["image_root"], settings["neighbours_columns"], settings["neighbours_bad_list"]
        )
    choice = EncoderChoice(**{key: _texts(value) for key, value in settings["encoder"].items()})
    if choice.name is None and (captions is None or settings["mode"] != "build"):
        known = read_manifest(out).encoder
        choice = EncoderChoice(known.kind, known.name, known.pretrained, choice.device, choice.precision)
    summary: dict[str, Any] = {}
    with exclusive(out.absolute()) if settings["mode"] != "build" or captions or data else nullcontext():
        if settings["mode"] == "verify":
            _verify(out)
        elif settings["mode"] != "build" or captions is not None:
            built = _make(settings, out, choice, samples)
            say(*_told(out))
            summary |= {"index_built": built, "index_s": round(time.perf_counter() - started, 3)}
        if samples is not None:
            summary |= _join(settings, out, samples, choice)
    if query is not None:
        print_neighbours(out, Path(query), choice, k=settings["k"], **_search(settings))
    if summary:
        write_summary(out, _counts(out) | summary | {"total_s": round(time.perf_counter() - started, 3)}, config)
    return out


def print_neighbours(
    index_dir: Path, picture: Path, choice: EncoderChoice, *, k: int, device: str = "auto", spread: str = "replicate"
) -> None:
    """Print the `k` captions nearest to a picture.

    Raises:
        RetrievalError: an index of another encoder, `k` larger than the corpus, a picture that cannot be decoded.
    """
    index = CaptionIndex.open(index_dir, spec=choice.spec, device=device, spread=spread)
    check_k(k, len(index))
    index.check_encoder(choice.encoder)
    scores, rows = index.search(choice.encoder.encode_images([picture], batch_size=1), k)
    table = Table(title=literal(picture))
    for heading in ("score", "id", "caption"):
        table.add_column(heading, overflow="fold")
    for score, identifier, caption in zip(scores[0], index.ids(rows[0]), index.captions(rows[0]), strict=True):
        table.add_row(f"{score:.4f}", literal(identifier), literal(caption))
    Console().print(table)


def _texts(value: Any) -> Any:
    """Paths as text, be they written like numbers."""
    return [str(item) for item in value] if isinstance(value, list) else None if value is None else str(value)


def _check(settings: dict[str, Any], out: Path) -> None:
    """Raise UserError or RetrievalError for what is wrong before anything is read."""
    captions, query, data, mode = (settings[key] for key in ("captions", "query", "neighbours", "mode"))
    for key, allowed in (("mode", MODES), ("engine", ENGINES)):
        if settings[key] not in allowed:
            raise UserError(f"{key} has no such option", given=settings[key], allowed=allowed, remedy=f"{key}=...")
    if mode == "build" and captions is None and query is None and data is None:
        raise UserError(
            "There is nothing to do",
            remedy="captions=PATH builds an index, neighbours=DATA.json and query=PICTURE use one",
        )
    if mode == "append" and captions is None:
        raise UserError("There is nothing to add", remedy="captions=PATH of the new captions")
    if mode in ("replan", "verify") and captions is not None:
        raise UserError(f"mode={mode} takes no captions", given=captions, remedy="mode=append adds captions")
    if query is not None:
        _check_picture(Path(query))
    check_count(settings["k"], "k", "k=10")
    check_search(settings["neighbours_search"])
    check_spread(settings["index"]["gpus"])
    index_settings(settings["index"])
    above = next(place for place in out.absolute().parents if place.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError("Nothing can be written here", given=out, remedy="out=DIR of a directory that can be written")


def _check_picture(path: Path) -> None:
    """Raise UserError for a picture that is not there, or whose header cannot be read."""
    try:
        with opened(path):
            return
    except (OSError, Image.DecompressionBombError) as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "The picture does not exist" if missing else f"The picture cannot be read ({reason(error)})"
        raise UserError(problem, given=path, remedy="query=PATH of a picture") from error


def _make(settings: dict[str, Any], out: Path, choice: EncoderChoice, samples: Sequence[Sample] | None) -> bool:
    """Build, grow or replan; whether anything was done."""
    captions = settings["captions"]
    paths = [captions] if isinstance(captions, str) else captions or []
    engine = _engine(settings)
    if settings["mode"] == "build":
        k = settings["k"] if settings["query"] or samples is not None else 1
        return ensure_index(
            paths,
            out,
            choice,
            k=k,
            overwrite=settings["overwrite"],
            samples=samples,
            engine=engine,
            **settings["index"],
        )
    check_faiss()
    files = find_files(paths) if paths else []
    before = read_manifest(out)
    queries = held_out_queries(settings["index"], choice, samples)
    with progress_bars() as progress:
        job = Job(
            choice.encoder,
            choice.source,
            index_settings(settings["index"]),
            queries,
            engine=engine,
            progress=progress,
            announce=progress.announce,
        )
        after = append_captions(files, out, job) if files else plan_again(out, job)
    if after == before:
        say("These captions are in the index already.")
    elif files:
        added = after.sources[-1]
        say(f"Added {added.rows} captions; {added.duplicates} records held captions that were there already.")
    return after != before


def _engine(settings: dict[str, Any]) -> Engine:
    if settings["engine"] == "local":
        return LocalEngine()
    from retrieval_index.ray_engine import RayEngine  # an optional dependency

    return RayEngine(**settings["ray"])


def _verify(out: Path) -> None:
    with progress_bars() as progress:
        files = verify_index(out, lambda done, total: progress("verify", done, total))
    say(f"All {files} files are as the manifest says.")


def _search(settings: dict[str, Any]) -> dict[str, str]:
    return {"device": settings["index"]["search_device"], "spread": settings["index"]["gpus"]}


def _join(settings: dict[str, Any], out: Path, samples: Sequence[Sample], choice: EncoderChoice) -> dict[str, Any]:
    started = time.perf_counter()
    target = Path(settings["neighbours_out"] or out / "neighbours.parquet")
    joined = ensure_neighbours(
        out,
        samples,
        target,
        choice,
        k=settings["k"],
        batch_size=settings["index"]["batch_size"],
        search=settings["neighbours_search"],
    )
    summary: dict[str, Any] = {"neighbours_written": joined is not None, "neighbours_k": settings["k"]}
    if joined is None:
        say(f"The neighbours are up to date: {target}")
    else:
        say(f"Neighbours of {joined.samples} samples: {target}")
        summary |= {"neighbours_samples": joined.samples, "neighbours_without_query": joined.without_query}
    return summary | {"neighbours_s": round(time.perf_counter() - started, 3)}


def _told(out: Path) -> tuple[str, str]:
    """What was read and what is there, in two lines."""
    counts, manifest = _counts(out), read_manifest(out)
    searched = "".join(f", {name} {value}" for name, value in manifest.index.search.items())
    recall = manifest.index.recall
    measured = f"recall@{recall.k} {recall.value:.4f} with {recall.queries} {recall.of}" if recall.queries else "exact"
    return (
        f"{counts['captions_read']} records: {counts['captions']} captions, {counts['captions_duplicate']} duplicates, "
        f"{counts['captions_without_text']} empty, {counts['captions_too_long']} too long; "
        f"{counts['captions_truncated']} captions cut to what the encoder reads",
        f"{out}: {NAMES[manifest.index.plan['kind']]}{searched}; {measured}",
    )


def _counts(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    index = manifest.index
    return {
        "captions_read": manifest.total("read"),
        "captions": manifest.rows,
        "captions_duplicate": manifest.total("duplicates"),
        "captions_without_text": manifest.total("without_caption"),
        "captions_too_long": manifest.total("too_long"),
        "captions_truncated": sum(shard.truncated for shard in manifest.shards),
        "width": manifest.width,
        "shards": len(manifest.shards),
        "index_kind": index.plan["kind"],
        "index_bytes": index.bytes,
        "index_recall": index.recall.value,
        "index_recall_k": index.recall.k,
        "index_recall_queries": index.recall.queries,
        "index_recall_of": index.recall.of,
        **{f"index_{name}": value for name, value in index.search.items()},
    }


if __name__ == "__main__":
    main()
