"""How far two methods differ, by resampling: the same questions, asked of both, over the seeds that both have.

A t-interval over seeds speaks of other seeds and the same questions. Here seeds and questions are both drawn again with
replacement (the pigeonhole bootstrap of Owen 2007 for crossed factors), so the interval speaks of other seeds and other
questions of their kind. Pairs stay pairs: a question's two answers are drawn together. Of S seeds S - 1 are drawn (Rao
and Wu 1988): a mean of S drawn ones would vary by the sample's variance without Bessel's correction, with three seeds a
third too little. Of the many questions all are drawn. With one seed, questions alone are.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tga.evaluation.rates import CONFIDENCE
from tga.evaluation.suite import key_part

RESAMPLES = 2_000
BLOCK = 2**22  # numbers held at once

# rate -> question id -> whether the judge accepted the answer
Judgements = Mapping[str, Mapping[str, bool]]


@dataclass(frozen=True)
class Resampled:
    """A mean difference with its percentile interval, and a two-sided p for the hypothesis that there is none.

    p is twice the smaller share of resamples at or beyond zero, each share with one resample added (Davison and Hinkley
    1997), so that it is never zero: with 2,000 resamples the smallest is 0.001.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    questions: int

    @property
    def significant(self) -> bool:
        """p below one minus the confidence."""
        return self.p < 1.0 - CONFIDENCE


def paired_bootstrap(
    differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Resampled:
    """Resample a table of paired differences.

    Args:
        differences: `[seeds, questions]`, at least one of each: this method's judgement less the other's, -1, 0 or 1.
        resamples: how many tables are drawn.
        seed: of the draws.
    """
    values = np.asarray(differences, dtype=np.float64)
    seeds, questions = values.shape
    rng = np.random.default_rng(seed)
    count = max(1, seeds - 1)
    drawn_seeds = rng.multinomial(count, np.full(seeds, 1 / seeds), size=resamples)
    per_question = drawn_seeds @ values  # [resamples, questions]: the sum over the drawn seeds
    sums = np.empty(resamples)
    step = max(1, BLOCK // questions)
    for start in range(0, resamples, step):
        rows = slice(start, min(start + step, resamples))
        weights = rng.multinomial(questions, np.full(questions, 1 / questions), size=rows.stop - rows.start)
        sums[rows] = np.einsum("rq,rq->r", per_question[rows], weights)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(sums / (count * questions), [tail, 1.0 - tail])
    beyond = min(int((sums <= 0).sum()), int((sums >= 0).sum()))  # sums of whole numbers are exact
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return Resampled(float(values.mean()), float(low), float(high), p, seeds, questions)


def read_judgements(path: Path, by_group: Collection[str] = ()) -> dict[str, dict[str, bool]]:
    """The judgements of a run's answers.jsonl, by the names that the rates have in its summary; empty without a file.

    by_group: metrics whose groups have rates of their own, `<metric>_<group>`.
    """
    if not path.is_file():
        return {}
    found: dict[str, dict[str, bool]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            names = [row["metric"]]
            if row["metric"] in by_group and row["group"]:
                names.append(f"{row['metric']}_{key_part(row['group'])}")
            for name in names:
                found.setdefault(name, {})[row["id"]] = bool(row["judged"])
    return found


def difference_table(pairs: Sequence[tuple[Mapping[str, bool], Mapping[str, bool]]]) -> np.ndarray | None:
    """`[seeds, questions]` of differences over the questions that all runs answered; None where there is none.

    pairs: (this method's judgements, the other's) of each seed.
    """
    common = set.intersection(*({*ours} & {*theirs} for ours, theirs in pairs)) if pairs else set()
    if not common:
        return None
    order = sorted(common)
    rows = [[int(ours[key]) - int(theirs[key]) for key in order] for ours, theirs in pairs]
    return np.array(rows, dtype=np.int8)


def bootstrap_differences(
    judged: Mapping[tuple[str, int], Judgements],
    methods: Sequence[str],
    baseline: str,
    *,
    leave_out: Collection[str] = (),
    resamples: int = RESAMPLES,
) -> dict[tuple[str, str], Resampled]:
    """(method, rate) -> its difference to the baseline, for every rate that both have in a seed.

    judged: judgements by (method, seed). leave_out: rates that are not compared.
    """
    found = {}
    for method in [method for method in methods if method != baseline]:
        seeds = [seed for name, seed in sorted(judged) if name == method and (baseline, seed) in judged]
        rates = dict.fromkeys(rate for seed in seeds for rate in judged[method, seed] if rate not in leave_out)
        for rate in rates:
            both = [(judged[method, seed].get(rate), judged[baseline, seed].get(rate)) for seed in seeds]
            table = difference_table([(ours, theirs) for ours, theirs in both if ours and theirs])
            if table is not None:
                found[method, rate] = paired_bootstrap(table, resamples=resamples)
    return found
