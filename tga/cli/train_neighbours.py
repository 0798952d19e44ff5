"""The neighbours of a training: the caption index and the join, made where they are missing or of something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tga.cli.build_index import EncoderChoice, ensure_index, ensure_neighbours
from tga.cli.data import read_samples
from tga.cli.locks import exclusive
from tga.cli.stopwatch import Stopwatch
from tga.data.sample import Sample
from tga.training.distributed import Processes, wait_for_all


def neighbours_file(
    values: Mapping[str, Any], samples: Sequence[Sample], watch: Stopwatch, processes: Processes
) -> Path:
    """The neighbours file, made from the corpus where it is missing or of something else, by one process a machine."""
    data = values["data"]
    if data["neighbours"] is not None and data["captions"] is None:
        return Path(data["neighbours"])
    index_dir = Path(data["index_dir"]).absolute()
    out = Path(data["neighbours"]) if data["neighbours"] is not None else index_dir / "neighbours.parquet"
    captions = [data["captions"]] if isinstance(data["captions"], str) else data["captions"]
    choice, k = EncoderChoice(**values["encoder"]), data["neighbours_k"]
    if processes.local_rank == 0:
        with exclusive(index_dir):
            with watch.stage("index"):
                ensure_index([Path(path) for path in captions], index_dir, choice, **values["index"], k=k)
            with watch.stage("neighbours"):
                if data["limit"] is not None:  # a trial run must not leave the neighbours of a few samples for all
                    samples = read_samples({**data, "limit": None})
                ensure_neighbours(index_dir, samples, out, choice, k=k, batch_size=values["index"]["batch_size"])
    wait_for_all()
    return out
