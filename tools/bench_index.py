"""Speed, memory and recall of the caption index, as ratios within one run.

    python -m tools.bench_index --json
    python -m tools.bench_index --json --only search_over_raw_faiss --scale 0.1
    python -m tools.bench_index --costs
    python -m tools.bench_index --plan 100000000 768 64GiB --threads 64

The two sides of a ratio take turns in one process, and the medians of `--turns` turns are divided. `--scale` shrinks
the sizes (and the memory budget with them) where there is no time for the whole; it stands in the output.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from retrieval_index.planner import candidates, choose_plan
from retrieval_index.units import format_bytes, format_seconds, parse_bytes
from tools.index_bench.costs import measure_costs
from tools.index_bench.timing import ratio_of_medians

LIMITS = {
    "encode_over_open_clip": (">=", 4.0),
    "encode_cosine_min": (">=", 0.99999),
    "encode_over_sentence_transformers": (">=", 1.0),
    "pipeline_over_bare_encoder": ("<=", 1.10),
    "search_over_raw_faiss": ("<=", 1.05),
    "build_peak_rss_over_budget": ("<=", 1.0),
    "recall_at_10": (">=", 0.95),
}
BUILD = {"rows": 2_000_000, "width": 256, "budget": 2**30}
SEARCH = {"rows": 1_000_000, "width": 512, "queries": 1000}


def main() -> int:
    """Print the figures; the exit code is 1 where one misses its limit."""
    arguments = _arguments()
    if arguments.plan:
        rows, width, budget = int(arguments.plan[0]), int(arguments.plan[1]), parse_bytes(arguments.plan[2])
        print_plans(rows, width, budget, arguments.threads)
        return 0
    directory = Path(arguments.directory or tempfile.mkdtemp(prefix="bench-index-"))
    try:
        figures = dict(measure_costs(directory)) if arguments.costs else run(directory, arguments)
    finally:
        if arguments.directory is None:
            shutil.rmtree(directory)
    missed = [key for key, value in figures.items() if key in LIMITS and not within(key, value)]
    if arguments.json or arguments.costs:
        print(json.dumps(figures | {"scale": arguments.scale, "missed": missed}, indent=2))
    else:
        for key, value in figures.items():
            print(f"{key:36} {value:10.4g}   {' '.join(map(str, LIMITS.get(key, ())))}")
    return int(bool(missed))


def within(key: str, value: float) -> bool:
    """Whether a figure keeps to its limit."""
    sign, limit = LIMITS[key]
    return value >= limit if sign == ">=" else value <= limit


def run(directory: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """All groups of figures that `--only` leaves."""
    from tools.index_bench import encoders  # brings torch

    groups: dict[tuple[str, ...], Callable[[], dict[str, float]]] = {
        ("encode_over_open_clip", "encode_cosine_min", "pipeline_over_bare_encoder"): lambda: (
            encoders.open_clip_figures(directory, arguments.turns, arguments.scale)
        ),
        ("encode_over_sentence_transformers",): lambda: encoders.sentences(directory, arguments.turns, arguments.scale),
        ("search_over_raw_faiss",): lambda: search(directory, arguments.turns, arguments.scale),
        ("build_peak_rss_over_budget", "recall_at_10"): lambda: build(directory, arguments.scale),
    }
    figures: dict[str, float] = {}
    for keys, group in groups.items():
        if arguments.only is None or set(keys) & set(arguments.only):
            figures |= group()
            print(f"{', '.join(keys)}: done", file=sys.stderr, flush=True)
    return figures


def search(directory: Path, turns: int, scale: float) -> dict[str, float]:
    """Our search against the same FAISS index called directly: exact, and an inverted file; the worse one counts."""
    from retrieval_index.approximate import make_index
    from retrieval_index.engines import LocalEngine
    from retrieval_index.faiss_env import import_faiss
    from retrieval_index.searcher import Searcher
    from retrieval_index.vectors import Vectors
    from tools.index_bench.synthetic import write_corpus

    faiss, rows = import_faiss(), int(SEARCH["rows"] * scale)
    paths, queries = write_corpus(directory / "search", rows, SEARCH["width"], SEARCH["queries"])
    vectors, figures = Vectors(paths), {}
    for kind, parameters in (("flat", {}), ("ivf_flat", {"nprobe": 32})):
        path = directory / f"search-{kind}" / "0.faiss"
        path.parent.mkdir()
        plan = choose_plan(rows, SEARCH["width"], 2**34, kind=kind)
        make_index(vectors, plan, path, run=LocalEngine().run_parts, report=lambda done: None)
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        raw_parameters = faiss.SearchParametersIVF(nprobe=32) if parameters else None
        searcher = Searcher(index, parameters, vectors.take)
        ours, theirs = searcher.search(queries, 10), index.search(queries, 10, params=raw_parameters)
        assert (ours[1] == theirs[1]).all()
        figures[f"search_over_raw_faiss_{kind}"] = ratio_of_medians(
            partial(searcher.search, queries, 10),
            partial(index.search, queries, 10, params=raw_parameters),
            turns,
        )
        path.unlink()
    return figures | {"search_over_raw_faiss": max(figures.values())}


def build(directory: Path, scale: float) -> dict[str, float]:
    """Plan, build and measure an index in a process of its own, whose peak memory is all of it."""
    from tools.index_bench.synthetic import write_corpus

    rows = int(BUILD["rows"] * scale)
    write_corpus(directory / "build", rows, BUILD["width"], 1000)
    budget = int(BUILD["budget"] if scale == 1 else (BUILD["budget"] - 2**28) * scale + 2**28)
    command = [sys.executable, "-m", "tools.index_bench.build", str(directory / "build"), str(budget)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def print_plans(rows: int, width: int, budget: int, threads: int) -> None:
    """Print every kind of index over some embeddings, and the one that would be chosen."""
    for plan in candidates(rows, width, budget):
        sizes = f"{format_bytes(plan.index_bytes):>8}  peak {format_bytes(plan.peak_bytes):>8}"
        seconds = format_seconds(plan.build_seconds(threads))
        print(f"{plan.kind:9} {plan.code_bytes:5} B/row {plan.lists:7} lists  {sizes}  {seconds:>10}")
    print(choose_plan(rows, width, budget).describe(budget, threads))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), help="these figures only")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side of a ratio")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes")
    parser.add_argument("--directory", help="for the data, kept; default: a temporary one")
    parser.add_argument("--costs", action="store_true", help="measure the unit costs of the planner instead")
    parser.add_argument("--plan", nargs=3, metavar=("ROWS", "WIDTH", "BUDGET"), help="print the plans instead")
    parser.add_argument("--threads", type=int, default=1, help="of the machine that --plan is for")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
