"""Methods against a baseline over seeds: pure functions from the summaries of single runs to one flat table.

A cell is one run, named by (method, seed), with the numbers of its summary. Over seeds there is a mean with Student's
95 % interval for every method, and for every method the mean of its paired differences to the baseline. A metric that
does not depend on what was trained (the text rates of a frozen language model) is reported once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from tga.evaluation.bootstrap import Resampled
from tga.evaluation.rates import Interval, mean_interval, paired_difference
from tga.evaluation.report import ABSENT, Table, interval_text

Cells = Mapping[tuple[str, int], Mapping[str, float]]
Bootstrap = Mapping[tuple[str, str], Resampled]

SHARED_METRICS = ("text_dsr", "text_over_refusal")
NOT_COMPARED = ("_low", "_high", "_n", "config_hash")
COSTS = ("_s", "_mib", "_per_s")


def numbers_only(summary: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a run's summary that can be averaged over seeds; interval ends, counts and texts left out."""
    return {
        key: float(value)
        for key, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.endswith(NOT_COMPARED)
    }


def method_interval(cells: Cells, method: str, metric: str) -> Interval | None:
    """Mean of one metric over the seeds of one method; None where no cell has it."""
    values = _by_seed(cells, method, metric)
    return mean_interval(list(values.values())) if values else None


def difference_interval(cells: Cells, method: str, baseline: str, metric: str) -> Interval | None:
    """Paired difference `method - baseline` over the seeds both have; None where there is no such seed."""
    ours, theirs = _by_seed(cells, method, metric), _by_seed(cells, baseline, metric)
    return paired_difference(ours, theirs) if ours.keys() & theirs.keys() else None


def comparison_values(cells: Cells, methods: Sequence[str], baseline: str) -> dict[str, float]:
    """Flat text rates, `{method}_{metric}_mean` and `{method}_minus_{baseline}_{metric}_mean`, `_low`, `_high`.

    cells: numbers by (method, seed), as from `numbers_only`. With one seed there are no `_low` and `_high` keys.
    Costs (times, memory) have means but no differences.
    """
    metrics = sorted({metric for numbers in cells.values() for metric in numbers})
    values: dict[str, float] = {}
    for metric in SHARED_METRICS:
        found = [numbers[metric] for numbers in cells.values() if metric in numbers]
        if found:
            values[metric] = fmean(found)
    for method in methods:
        for metric in metrics:
            values.update(_flat(f"{method}_{metric}", method_interval(cells, method, metric)))
            if method != baseline and not metric.endswith(COSTS):
                difference = difference_interval(cells, method, baseline, metric)
                values.update(_flat(f"{method}_minus_{baseline}_{metric}", difference))
    return values


def bootstrap_values(bootstrap: Bootstrap, baseline: str) -> dict[str, float]:
    """Flat `{method}_minus_{baseline}_{rate}_bootstrap_low`, `_bootstrap_high` and `_bootstrap_p`."""
    values: dict[str, float] = {}
    for (method, rate), found in bootstrap.items():
        name = f"{method}_minus_{baseline}_{rate}_bootstrap"
        values |= {f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p}
    return values


def layer_mean(numbers: Mapping[str, float], pattern: str, layers: Sequence[int] | None) -> float | None:
    """Mean of the values that a run has by layer; None where it has none of them.

    pattern: a key with `{layer}` in it. layers: which, None for every layer from 1 that the run has.
    """
    head, _, tail = pattern.partition("{layer}")
    found = {}
    for key, value in numbers.items():
        layer = key[len(head) : len(key) - len(tail)]
        if key.startswith(head) and key.endswith(tail) and layer.isdecimal() and f"{head}{layer}{tail}" == key:
            found[int(layer)] = value
    chosen = (
        [layer for layer in found if layer >= 1] if layers is None else [layer for layer in layers if layer in found]
    )
    return fmean(found[layer] for layer in chosen) if chosen else None


def means_table(cells: Cells, methods: Sequence[str], metrics: Sequence[str]) -> Table:
    """Methods as rows, metrics as columns, each a mean with its interval over seeds."""
    shown = _present(cells, metrics)
    rows = [
        [method, *(interval_text(method_interval(cells, method, metric), metric) for metric in shown)]
        for method in methods
    ]
    return Table("Means over seeds with 95 % intervals (Student's t)", ["method", *shown], rows)


def differences_table(cells: Cells, methods: Sequence[str], baseline: str, metrics: Sequence[str]) -> Table:
    """Paired differences to the baseline; one whose interval holds zero is marked `n.s.` (not significant)."""
    shown = [metric for metric in _present(cells, metrics) if not metric.endswith(COSTS)]
    rows = []
    for method in (method for method in methods if method != baseline):
        row = [f"{method} - {baseline}"]
        for metric in shown:
            difference = difference_interval(cells, method, baseline, metric)
            mark = " n.s." if difference is not None and difference.excludes_zero is False else ""
            row.append(interval_text(difference, metric, signed=True) + mark)
        rows.append(row)
    return Table(f"Paired differences to {baseline} over seeds", ["difference", *shown], rows)


def groups_table(cells: Cells, methods: Sequence[str], metric: str, rates: Sequence[str]) -> Table | None:
    """The groups (scenes) of one metric as rows, methods side by side; None where no run has any.

    rates: the keys of the groups, `<metric>_<group>`.
    """
    groups = _present(cells, rates)
    if not groups:
        return None
    rows = [
        [
            key.removeprefix(f"{metric}_") if key != metric else "all",
            *(interval_text(method_interval(cells, method, key), key) for method in methods),
        ]
        for key in [*_present(cells, [metric]), *groups]
    ]
    return Table(f"{metric} by group", ["group", *methods], rows)


def bootstrap_table(bootstrap: Bootstrap, methods: Sequence[str], baseline: str, metrics: Sequence[str]) -> Table:
    """Differences to the baseline with bootstrap intervals and p; one that is not significant is marked `n.s.`."""
    shown = [metric for metric in metrics if any((method, metric) in bootstrap for method in methods)]
    rows = []
    for method in [method for method in methods if method != baseline]:
        cells = [_resampled_text(bootstrap.get((method, metric)), metric) for metric in shown]
        rows.append([f"{method} - {baseline}", *cells])
    title = f"The same differences to {baseline}, resampled over seeds and questions (95 % intervals, two-sided p)"
    return Table(title, ["difference", *shown], rows)


def _resampled_text(found: Resampled | None, metric: str) -> str:
    if found is None:
        return ABSENT
    text = interval_text(Interval(found.mean, found.low, found.high, found.seeds), metric, signed=True)
    return f"{text} p {found.p:.3f}" + ("" if found.significant else " n.s.")


def notes(
    cells: Cells,
    methods: Sequence[str],
    baseline: str,
    metrics: Sequence[str],
    bootstrap: Bootstrap | None = None,
) -> list[str]:
    """Sentences a reader needs beside the tables: which differences are not significant, and what is missing."""
    said = []
    seeds = sorted({seed for _, seed in cells})
    if len(seeds) < 2:
        said.append(
            "One seed: there are no intervals over seeds; a resampled one tells of other questions, not of other seeds."
        )
    shown = [metric for metric in _present(cells, metrics) if not metric.endswith(COSTS)]
    for method in (method for method in methods if method != baseline):
        weak = []
        for metric in shown:
            difference = difference_interval(cells, method, baseline, metric)
            if difference is not None and difference.excludes_zero is False:
                weak.append(metric)
        if weak:
            said.append(f"Not significant (the 95 % interval holds zero): {method} - {baseline} in {', '.join(weak)}.")
    said += _bootstrap_notes(bootstrap or {}, methods, baseline, shown)
    if baseline not in methods:
        said.append(f"No differences: {baseline} is not among the methods.")
    for metric in SHARED_METRICS:
        found = {numbers[metric] for numbers in cells.values() if metric in numbers}
        if len(found) > 1:
            said.append(f"{metric} differs between runs ({min(found):.3f} to {max(found):.3f}); the mean is reported.")
    missing = [f"{method} seed {seed}" for method in methods for seed in seeds if (method, seed) not in cells]
    if missing:
        said.append(f"Missing runs: {', '.join(missing)}.")
    return said


def _bootstrap_notes(bootstrap: Bootstrap, methods: Sequence[str], baseline: str, metrics: Sequence[str]) -> list[str]:
    said = []
    for method in (method for method in methods if method != baseline):
        found = {metric: bootstrap[method, metric] for metric in metrics if (method, metric) in bootstrap}
        if weak := [metric for metric, one in found.items() if not one.significant]:
            said.append(
                f"Not significant (bootstrap over seeds and questions, p >= 0.05): {method} - {baseline} in "
                f"{', '.join(weak)}."
            )
    return said


def _by_seed(cells: Cells, method: str, metric: str) -> dict[int, float]:
    return {
        seed: numbers[metric] for (name, seed), numbers in sorted(cells.items()) if name == method and metric in numbers
    }


def _present(cells: Cells, metrics: Sequence[str]) -> list[str]:
    return [metric for metric in metrics if any(metric in numbers for numbers in cells.values())]


def _flat(name: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {}
    values = {f"{name}_mean": interval.mean}
    if interval.low is not None and interval.high is not None:
        values.update({f"{name}_low": interval.low, f"{name}_high": interval.high})
    return values
