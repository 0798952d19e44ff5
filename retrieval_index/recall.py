"""How good an index is for the queries it will get, and the search parameters that make it good enough.

Recall@k is the share of the exact k nearest captions that the index returns. It is measured with queries that are not
in the corpus: pictures, whose vectors lie elsewhere than those of captions, so that an index that finds captions well
may still miss theirs. For text encoders captions of the corpus ask, and find themselves on neither side.

Half of the queries choose the parameters; the other half measures what stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval_index.checks import check_width
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import import_faiss
from retrieval_index.manifest import Recall
from retrieval_index.vectors import Vectors

LEAST_QUERIES = 20
REFINE = {"ivf_flat": (0,), "ivf_sq8": (0, 2, 4), "ivf_pq": (4, 8, 16, 32, 64), "hnsw": (0,)}
LARGEST_EF = 4096
BISECTIONS = 5
ROUNDS = 3
STALLED = 0.001  # a doubling that brings less than this may have reached what the codes allow
Search = Callable[[np.ndarray, int, dict[str, int]], np.ndarray]


@dataclass(frozen=True)
class Queries:
    """Held-out queries.

    Args:
        vectors: `[queries, width]` float32, L2-normalised.
        of: what they are of: "pictures", "captions" or "vectors".
        own: for each query the row that is itself and never counts, or None where no query is in the corpus.
    """

    vectors: np.ndarray
    of: str
    own: np.ndarray | None = None

    def check(self, width: int) -> None:
        """Raise RetrievalError for too few of them, or another width."""
        check_width(self.vectors, width)
        if len(self.vectors) < LEAST_QUERIES:
            raise RetrievalError(
                "There are too few queries to measure recall with",
                given=f"{len(self.vectors)} {self.of}",
                allowed=f"{LEAST_QUERIES} or more",
                remedy="index.queries=PATH of more pictures, or index.kind=flat",
            )


class BelowTarget(RetrievalError):
    """An index that misses its recall; its embeddings are kept."""


@dataclass(frozen=True)
class Tuned:
    """Search parameters, and what they reach."""

    parameters: dict[str, int]
    recall: Recall


def exact_neighbours(vectors: Vectors, queries: np.ndarray, k: int, report: Callable[[int], None]) -> np.ndarray:
    """The rows `[queries, k]` int64 of largest inner product, by comparison with every one."""
    faiss = import_faiss()
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    for start, block in vectors.blocks():
        block_scores, block_rows = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, block_scores], axis=1)
        rows = np.concatenate([rows, block_rows + start], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        report(start + len(block))
    return rows


def hits(found: np.ndarray, truth: np.ndarray, own: np.ndarray | None, k: int) -> np.ndarray:
    """For each query the share of its exact `k` that were found, `[queries]` float64.

    `found` and `truth` are rows `[queries, k or k + 1]`; with `own`, one more than `k`, and the own row is left out.
    """
    shares = np.empty(len(truth))
    for query, (one, other) in enumerate(zip(found.tolist(), truth.tolist(), strict=True)):
        itself = None if own is None else int(own[query])
        expected = [row for row in other if row != itself][:k]
        shares[query] = len({row for row in one if row != itself} & set(expected)) / k
    return shares


def tune(search: Search, kind: str, lists: int, queries: Queries, truth: np.ndarray, k: int, target: float) -> Tuned:
    """The cheapest parameters that reach `target` by two standard errors on one half of the queries, measured on the
    other.

    Args:
        search: rows `[queries, n]` of queries `[queries, width]`, n and search parameters.
        kind: of the index, a key of `REFINE`.
        lists: of an inverted file.
        queries: all of them.
        truth: their exact neighbours `[queries, k]`, or `[queries, k + 1]` where the queries are in the corpus.
        k: neighbours compared.
        target: recall wanted.

    Returns:
        The parameters and their recall; where none reaches the target, the best that were found.
    """
    choose = np.arange(len(truth)) % 2 == 0
    trials: dict[tuple[int, int], float] = {}
    effort, largest = ("ef_search", LARGEST_EF) if kind == "hnsw" else ("nprobe", lists)

    def measure(half: np.ndarray, value: int, refine: int) -> np.ndarray:
        parameters = {effort: value} | ({"refine": refine} if refine else {})
        own = None if queries.own is None else queries.own[half]
        return hits(search(queries.vectors[half], truth.shape[1], parameters), truth[half], own, k)

    def reaches(value: int, refine: int, goal: float) -> bool:
        if (value, refine) not in trials:
            shares = measure(choose, value, refine)
            trials[value, refine] = float(shares.mean() - 2 * shares.std() / np.sqrt(len(shares)))
        return trials[value, refine] >= goal

    goal, best = target, (largest, REFINE[kind][-1])
    for _ in range(ROUNDS):
        found = _cheapest(reaches, trials, kind, k if kind == "hnsw" else 1, largest, goal)
        best = found or max(trials, key=lambda trial: (trials[trial], -trial[0]))
        shares = measure(~choose, *best)
        if found is None or shares.mean() >= target:
            break
        goal += target - float(shares.mean())
    parameters = {effort: best[0]} | ({"refine": best[1]} if best[1] else {})
    error = float(shares.std() / np.sqrt(len(shares)))
    value = round(float(shares.mean()), 6)
    return Tuned(parameters, Recall(k, value, round(error, 6), len(shares), queries.of, target))


def _cheapest(
    reaches: Callable[[int, int, float], bool],
    trials: dict[tuple[int, int], float],
    kind: str,
    least: int,
    largest: int,
    goal: float,
) -> tuple[int, int] | None:
    """The first `refine` that reaches the goal, with the smallest effort that does; None where nothing does.

    A recall that stalls ends the doubling where more refinement is left to try, and nowhere else: it may rise again.
    """
    for refine in REFINE[kind]:
        value, before = min(least, largest), 0
        while not reaches(value, refine, goal):
            rise = trials[value, refine] - trials[before, refine] if before else 1.0
            stalled = rise < STALLED and trials[value, refine] > 0.5 and refine != REFINE[kind][-1]
            if value == largest or stalled:
                break
            before, value = value, min(2 * value, largest)
        else:
            low, high = before, value  # low misses the goal, high reaches it
            for _ in range(BISECTIONS):
                middle = (low + high) // 2
                if middle in (low, high):
                    break
                low, high = (low, middle) if reaches(middle, refine, goal) else (middle, high)
            return high, refine
    return None


def refuse_below(tuned: Tuned, kind: str, accepted: float | None, larger: str) -> None:
    """Raise BelowTarget, with what would reach it, where the recall misses its target (or what is accepted instead)."""
    recall = tuned.recall
    least = recall.target if accepted is None else accepted
    if recall.value < least:
        rounded = int(recall.value * 1000) / 1000
        raise BelowTarget(
            f"The index misses its recall: {recall.value:.4f} (standard error {recall.standard_error:.4f}) of "
            f"{recall.k} neighbours with {recall.queries} {recall.of}",
            given=f"{kind} with {', '.join(f'{name} {value}' for name, value in tuned.parameters.items())}",
            allowed=f"{least:g} or more",
            remedy=f"{larger}, or index.accept_recall={rounded:g} to keep it; no caption will be encoded again",
        )
