"""Which index: from rows, width, memory, device and the recall wanted, before anything is computed.

A plan depends on its arguments alone (never on how much memory happens to be free), so that a build that was
interrupted, or runs elsewhere, makes the same files. Its times are estimates from the costs below, measured by
`python -m tools.bench_index --costs`.

Kinds: `flat` is exact. `hnsw` is a graph over the float vectors: fastest to ask, largest, slow to build. The
inverted-file kinds look into the nearest lists only: `ivf_flat` keeps float vectors, `ivf_sq8` a byte per number,
`ivf_pq` far fewer and ranks its candidates again by the embeddings on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from retrieval_index.errors import RetrievalError
from retrieval_index.units import format_bytes, format_seconds

KINDS = ("flat", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq")
NAMES = {
    "flat": "exact flat",
    "hnsw": "HNSW",
    "ivf_flat": "IVF-Flat",
    "ivf_sq8": "IVF-SQ8",
    "ivf_pq": "IVF-PQ with refine",
}

RESERVED = 160 << 20  # the interpreter and its libraries (FAISS, Arrow) without torch
BUFFERS = 96 << 20  # blocks of vectors and scores while adding and measuring
GROWTH = 2.8  # a graph that grows in memory is copied when its place is full
SORTING = 32  # bytes per row beside its code while a part is sorted by lists: list, order, and what sorting takes
EXACT_NUMBERS = {"cpu": 10**8, "cuda": 2 * 10**10}  # rows x width up to which a query against all is quick
HNSW_LINKS, HNSW_BUILD_S = 32, 600.0  # built by one thread, or its links would depend on the order of threads
SAMPLE_PER_LIST, LEAST_PER_LIST = 64, 32
LEAST_PART_ROWS, PARTS = 100_000, 32  # so many parts for machines to share, and for a kill to lose little
HNSW_QUANTISER_LISTS = 65_536  # from here on a graph over the centroids finds the lists

# Per thread, on the machine of docs/scale.md.
FLOP_PER_S = 28e9  # of large matrix products
PQ_FLOP_PER_S, PQ_LEARN_FLOP_PER_S = 11e9, 1.3e9  # of the many small ones of product quantisation
HNSW_ROW_S = 2.2e-6  # to insert a row, per number of width, among a million
DISK_BYTES_PER_S = 5e8
KMEANS_ITERATIONS, PQ_ITERATIONS, PQ_SAMPLE = 10, 25, 65_536
GPU_CODE_BYTES = (
    1,
    2,
    3,
    4,
    8,
    12,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    96,
)  # of product codes that FAISS searches there
PQ_CENTROIDS = 256  # of each byte of a code, learned from as many rows at least


@dataclass(frozen=True)
class Plan:
    """What is built.

    Args:
        kind: one of `KINDS`.
        rows, width: of the embeddings.
        lists: of an inverted file, else 0.
        code_bytes: per row, without its id.
        sample: rows that lists and codes are learned from, drawn uniformly from all.
        part_rows: rows that are indexed at a time before the parts are merged on disk.
        index_bytes: of the FAISS file, which is what serving it keeps resident.
        peak_bytes: the most that building and measuring it keep resident, `RESERVED` included.
    """

    kind: str
    rows: int
    width: int
    lists: int
    code_bytes: int
    sample: int
    part_rows: int
    index_bytes: int
    peak_bytes: int

    @property
    def exact(self) -> bool:
        """Whether every query is compared with every row."""
        return self.kind == "flat"

    def build_seconds(self, threads: int) -> float:
        """An estimate of the time from the embeddings to the FAISS file."""
        flop, seconds = 0.0, self.index_bytes / DISK_BYTES_PER_S
        if self.lists:
            flop += 2.0 * self.lists * self.sample * self.width * KMEANS_ITERATIONS
            compared = self.lists if self.lists < HNSW_QUANTISER_LISTS else 64 * math.log2(self.lists)
            flop += 2.0 * self.rows * compared * self.width
            seconds += 2 * self.index_bytes / DISK_BYTES_PER_S * (self.part_rows < self.rows)
        if self.kind == "ivf_pq":
            pq_flop = 2.0 * PQ_CENTROIDS * self.width
            learned = min(self.sample, PQ_SAMPLE) * PQ_ITERATIONS
            seconds += pq_flop * (learned / PQ_LEARN_FLOP_PER_S + self.rows / PQ_FLOP_PER_S) / threads
        if self.kind == "hnsw":
            seconds += hnsw_seconds(self.rows, self.width)
        return seconds + flop / FLOP_PER_S / threads

    def describe(self, budget: int, threads: int) -> str:
        """One line: the choice, its size, and how long it will take."""
        detail = f", {self.lists} lists" if self.lists else ""
        seconds = self.build_seconds(threads)
        about = "about " if seconds >= 1 else ""
        return (
            f"Index: {NAMES[self.kind]} over {self.rows} x {self.width}{detail}; {format_bytes(self.index_bytes)} "
            f"(peak {format_bytes(self.peak_bytes)} of {format_bytes(budget)}); "
            f"built in {about}{format_seconds(seconds)} by {threads} thread{'s' * (threads > 1)}"
        )


def choose_plan(
    rows: int, width: int, budget: int, *, kind: str = "auto", device: str = "cpu", target_recall: float = 0.95
) -> Plan:
    """The best plan that fits.

    Exact where a query against all rows is quick or recall 1 is asked for; on a CPU HNSW where it fits and is built
    soon; else the inverted file that keeps the most of the vectors.

    Args:
        rows, width: of the embeddings.
        budget: bytes that building and serving may keep resident.
        kind: one of `KINDS` to ask for it, or "auto".
        device: "cpu" or a torch device of CUDA, where the index will be asked.
        target_recall: at most 1.

    Raises:
        RetrievalError: nothing fits, or the kind asked for does not.
    """
    if kind not in ("auto", *KINDS):
        raise RetrievalError(
            "Unknown kind of index", given=kind, allowed=", ".join(("auto", *KINDS)), remedy="index.kind=auto"
        )
    processor = "cuda" if device.startswith("cuda") else "cpu"
    if kind != "auto":
        wanted = [plan for plan in candidates(rows, width, budget) if plan.kind == kind]
        if not wanted:
            raise RetrievalError(
                "There are no product codes for such embeddings",
                given=f"{rows} x {width}",
                allowed=f"{PQ_CENTROIDS} rows or more, of an even width",
                remedy="index.kind=auto",
            )
    elif target_recall >= 1 or rows * width <= EXACT_NUMBERS[processor]:
        wanted = [_flat(rows, width)]
    else:
        quick = processor == "cpu" and hnsw_seconds(rows, width) <= HNSW_BUILD_S
        wanted = [
            plan for plan in candidates(rows, width, budget) if plan.kind != "flat" and (quick or plan.kind != "hnsw")
        ]
    if processor == "cuda":
        wanted.sort(key=lambda plan: plan.kind == "ivf_pq" and plan.code_bytes not in GPU_CODE_BYTES)
    for plan in wanted:
        if plan.peak_bytes <= budget:
            return plan
    raise does_not_fit(wanted, budget, asked=kind != "auto")


def candidates(rows: int, width: int, budget: int) -> Iterator[Plan]:
    """Every kind, the better ones first; those of product quantisation from long codes to short ones."""
    yield _flat(rows, width)
    yield _hnsw(rows, width)
    yield _inverted("ivf_flat", 4 * width, rows, width, budget)
    yield _inverted("ivf_sq8", width, rows, width, budget)
    for numbers_per_byte in (2, 4, 8, 16):
        if width % numbers_per_byte == 0 and rows >= PQ_CENTROIDS:
            yield _inverted("ivf_pq", width // numbers_per_byte, rows, width, budget)


def grown(plan: Plan, rows: int, budget: int) -> Plan | None:
    """The same kind of index over more rows, with the lists and codes it has; None where that no longer fits.

    It does not fit when it needs more memory than `budget`, or when a new plan would have four times as many lists.
    """
    if plan.kind in ("flat", "hnsw"):
        same = _flat(rows, plan.width) if plan.kind == "flat" else _hnsw(rows, plan.width)
    else:
        if _lists(rows) >= 4 * plan.lists:
            return None
        same = _inverted(plan.kind, plan.code_bytes, rows, plan.width, budget, lists=plan.lists)
    return same if same.peak_bytes <= budget else None


def does_not_fit(plans: list[Plan], budget: int, *, asked: bool) -> RetrievalError:
    """The error of a budget that none of the plans keeps to, with the least that one of them needs.

    asked: whether the kind was asked for, so that another one might fit.
    """
    least = min(plans, key=lambda plan: plan.peak_bytes)
    needed = budget
    while least.peak_bytes > needed:  # with more memory the same kind takes more lists
        needed = -(-least.peak_bytes // 2**20) * 2**20
        larger = candidates(least.rows, least.width, needed)
        least = next(plan for plan in larger if (plan.kind, plan.code_bytes) == (least.kind, least.code_bytes))
    return RetrievalError(
        f"No index of {least.rows} x {least.width} fits into the memory budget",
        given=format_bytes(budget),
        allowed=f"{NAMES[least.kind]} needs {format_bytes(needed)}",
        remedy=f"index.memory_budget={needed >> 20}MiB" + (", or index.kind=auto" if asked else ""),
    )


def hnsw_seconds(rows: int, width: int) -> float:
    """An estimate of the time one thread takes to link `rows` rows: each insertion searches what is there already."""
    return rows * width * HNSW_ROW_S * max(0.5, math.log2(max(rows, 2)) / 20)


def _flat(rows: int, width: int) -> Plan:
    size = 4 * rows * width
    return Plan("flat", rows, width, 0, 4 * width, 0, rows, size, RESERVED + BUFFERS + size)


def _hnsw(rows: int, width: int) -> Plan:
    # 2 M links of 4 bytes on the ground level and M on a level above for one row in M.
    size = rows * (4 * width + 8 * HNSW_LINKS + 16)
    return Plan("hnsw", rows, width, 0, 4 * width, 0, rows, size, RESERVED + BUFFERS + int(GROWTH * size))


def _lists(rows: int) -> int:
    """A power of two below four times the root of the rows, with enough rows for each list to be learned from."""
    return max(1, min(2 ** int(math.log2(4 * math.sqrt(max(rows, 1)))), rows // LEAST_PER_LIST))


def _inverted(kind: str, code_bytes: int, rows: int, width: int, budget: int, lists: int | None = None) -> Plan:
    room = budget - RESERVED - BUFFERS
    if lists is None:
        lists = _lists(rows)
        # Fewer lists where those could not be learned within the budget, down to a quarter.
        fewest = lists // 4
        while lists > fewest and 8 * width * (LEAST_PER_LIST * lists + lists) > room:
            lists //= 2
        lists = max(1, lists)
    row_bytes = code_bytes + 8
    centroids = 4 * lists * width
    size = rows * row_bytes + 8 * lists + centroids
    # What is learned from: FAISS holds the sample, and k-means a copy of it.
    affordable = (room - 2 * centroids) // (8 * width)
    sample = max(LEAST_PER_LIST * lists, min(SAMPLE_PER_LIST * lists, affordable))
    sample = min(rows, max(sample, min(PQ_SAMPLE, rows) if kind == "ivf_pq" else 0))
    part_rows = min(rows, max(-(-rows // PARTS), LEAST_PART_ROWS))
    learning = 8 * sample * width + 2 * centroids
    adding = part_rows * (code_bytes + SORTING) + 2 * centroids
    peak = RESERVED + BUFFERS + max(size, learning, adding)
    return Plan(kind, rows, width, lists, code_bytes, sample, part_rows, size, peak)
