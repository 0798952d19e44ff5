"""One generation of an index: from all embeddings to a FAISS file with search parameters and a measured recall."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_index.approximate import grow_index, make_index
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import import_faiss
from retrieval_index.faiss_open import faiss_gpus
from retrieval_index.files import file_sha256, remove_unfinished, write_json
from retrieval_index.manifest import IndexRecord, Recall
from retrieval_index.ownership import read_object
from retrieval_index.planner import NAMES, Plan, candidates, choose_plan
from retrieval_index.queries import caption_queries
from retrieval_index.recall import Tuned, exact_neighbours, refuse_below, tune
from retrieval_index.searcher import Searcher
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job, discard
from retrieval_index.store import index_path
from retrieval_index.vectors import Vectors

STAGE = "stage.json"


@dataclass(frozen=True)
class Growth:
    """The FAISS file of the version before, and the first row that it does not hold."""

    file: Path
    start: int


def plan_index(rows: int, width: int, settings: IndexSettings, *, measurable: bool) -> Plan:
    """The plan for some embeddings, made before they are computed.

    Args:
        rows, width: of the embeddings.
        settings: of the build.
        measurable: whether there are held-out queries of the kind that will be asked. Without them only an exact
            index is made, unless any recall is accepted.

    Raises:
        RetrievalError: nothing fits, or what fits could not be measured.
    """
    plan = choose_plan(
        rows,
        width,
        settings.budget,
        kind=settings.kind,
        device="cuda" if settings.search_device == "auto" and faiss_gpus() else settings.search_device,
        target_recall=settings.target_recall,
    )
    if plan.exact or measurable or settings.accept_recall == 0:
        return plan
    exact = next(candidates(rows, width, settings.budget))
    if settings.kind == "auto" and exact.peak_bytes <= settings.budget:
        return exact
    raise RetrievalError(
        f"The recall of an approximate index ({NAMES[plan.kind]}) must be measured with pictures, and none are given",
        allowed=f"pictures of which no caption is in the corpus; exact flat needs {exact.peak_bytes >> 20} MiB",
        remedy="index.queries=FOLDER, or neighbours=DATA.json, or index.accept_recall=0 to measure with captions",
    )


def make_generation(
    directory: Path,
    number: int,
    vectors: Vectors,
    plan: Plan,
    job: Job,
    growth: Growth | None = None,
) -> IndexRecord:
    """Write the FAISS file of generation `number` and find the search parameters that reach the target.

    What an interrupted run of the same plan left is used; a file of another plan is thrown away.

    Args:
        directory: of the work; the file goes to its `index/`.
        number: of the generation.
        vectors: all embeddings.
        plan: what to build.
        job: how.
        growth: the version before, where its file is to be added to.

    Raises:
        BelowTarget: the index misses its recall.
    """
    path = index_path(directory, number)
    _prepare(directory, {"number": number, "plan": dataclasses.asdict(plan), "from": growth and growth.start})

    def report(done: int) -> None:
        job.progress("index", done, len(vectors))

    report(0)
    if growth is None:
        make_index(vectors, plan, path, run=job.engine.run_parts, report=report)
    else:
        grow_index(growth.file, vectors, growth.start, plan, path, run=job.engine.run_parts, report=report)
    tuned = _measured(path, vectors, plan, job)
    refuse_below(tuned, NAMES[plan.kind], job.settings.accept_recall, better(plan, job.settings.budget))
    (path.parent / STAGE).unlink()
    return IndexRecord(
        generation=number,
        file=path.relative_to(directory).as_posix(),
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        plan=dataclasses.asdict(plan) | {"memory_budget": job.settings.budget},
        search=tuned.parameters,
        recall=tuned.recall,
    )


def better(plan: Plan, budget: int) -> str:
    """The settings of the next kind that keeps more of the vectors."""
    order = ("ivf_pq", "ivf_sq8", "ivf_flat", "flat")
    kind = order[min(order.index(plan.kind) + 1, 3)] if plan.kind in order else "flat"
    larger = next(other for other in candidates(plan.rows, plan.width, budget) if other.kind == kind)
    needed = f" index.memory_budget={-(-larger.peak_bytes // 2**20)}MiB" if larger.peak_bytes > budget else ""
    return f"index.kind={kind}{needed}"


def _measured(path: Path, vectors: Vectors, plan: Plan, job: Job) -> Tuned:
    settings = job.settings
    k = min(settings.recall_k, len(vectors) - (job.queries is None))
    if plan.exact:
        return Tuned({}, Recall(min(settings.recall_k, len(vectors)), 1.0, 0.0, 0, "nothing", settings.target_recall))
    asked = job.queries() if job.queries is not None else caption_queries(vectors, settings.recall_queries)
    asked.check(vectors.width)
    count = k + (asked.own is not None)
    truth = exact_neighbours(vectors, asked.vectors, count, lambda done: job.progress("recall", done, len(vectors)))
    faiss = import_faiss()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)

    def search(part: np.ndarray, neighbours: int, parameters: dict[str, int]) -> np.ndarray:
        return Searcher(index, parameters, vectors.take).search(part, neighbours)[1]

    return tune(search, plan.kind, plan.lists, asked, truth, k, settings.target_recall)


def _prepare(work: Path, identity: dict[str, object]) -> None:
    """Keep what a run of the same identity left in `work/index`, else empty it."""
    stage = work / "index" / STAGE
    if read_object(stage) == identity:
        remove_unfinished(stage.parent)
        return
    discard(work, "index/")
    write_json(stage, identity)


def plan_of(record: IndexRecord) -> Plan:
    """The plan that a manifest holds."""
    fields = {field.name for field in dataclasses.fields(Plan)}
    return Plan(**{name: value for name, value in record.plan.items() if name in fields})
