"""Build an index of stored vectors within a memory budget and print what it took, as JSON: a process of its own.

python -m tools.index_bench.build DIRECTORY BUDGET_BYTES
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from retrieval_index.approximate import make_index
from retrieval_index.engines import LocalEngine
from retrieval_index.faiss_env import import_faiss
from retrieval_index.planner import choose_plan
from retrieval_index.recall import Queries, exact_neighbours, tune
from retrieval_index.searcher import Searcher
from retrieval_index.vectors import Vectors


def main(directory: Path, budget: int) -> None:
    """Plan, build, tune and measure."""
    vectors = Vectors(sorted(path for path in directory.glob("*.npy") if path.stem.isdigit()))
    plan = choose_plan(len(vectors), vectors.width, budget)
    print(plan.describe(budget, len(os.sched_getaffinity(0))), file=sys.stderr)
    path = directory / "index" / "0.faiss"
    path.parent.mkdir()
    started = time.perf_counter()
    make_index(vectors, plan, path, run=LocalEngine().run_parts, report=lambda done: None)
    built = time.perf_counter()
    queries = Queries(np.load(directory / "queries.npy"), "vectors")
    truth = exact_neighbours(vectors, queries.vectors, 10, lambda done: None)
    faiss = import_faiss()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)

    def search(part: np.ndarray, k: int, parameters: dict[str, int]) -> np.ndarray:
        return Searcher(index, parameters, vectors.take).search(part, k)[1]

    tuned = tune(search, plan.kind, plan.lists, queries, truth, 10, 0.95)
    peak = peak_rss()
    figures = {
        "build_peak_rss_over_budget": peak / budget,
        "recall_at_10": tuned.recall.value,
        "recall_standard_error": tuned.recall.standard_error,
        "build_kind": plan.kind,
        "build_rows": len(vectors),
        "build_peak_rss_mib": peak >> 20,
        "build_planned_peak_mib": plan.peak_bytes >> 20,
        "build_s": built - started,
        "build_planned_s": plan.build_seconds(faiss.omp_get_max_threads()),
        "tune_s": time.perf_counter() - built,
        **{f"build_{name}": value for name, value in tuned.parameters.items()},
    }
    print(json.dumps(figures))


def peak_rss() -> int:
    """The most bytes that this process held resident; `ru_maxrss` would begin with what its parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
