"""What a sweep of strengths found: a table that a reader can judge the rule's choice by, and the same as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tga.evaluation.report import Table, markdown, models_table, write_text
from tga.files import write_json

TITLE = "Rates by strength on the questions for choosing"


def write_sweep(
    directory: Path,
    found: Mapping[float, Mapping[str, float]],
    metrics: Sequence[str],
    *,
    alpha: float,
    rule: str,
    name: str,
) -> tuple[Table, list[str]]:
    """NAME.md with intervals and NAME.json: strengths side by side.

    Args:
        found: alpha -> the figures of `tga.evaluation.suite.measure`.
        metrics: the figures to show.
        alpha: the strength that the rule takes, in words `rule`.

    Returns:
        The rates alone, for the terminal, and the notes below the table.
    """
    names = {a: f"{a:g} (chosen)" if a == alpha else f"{a:g}" for a in found}
    notes = [f"alpha {alpha:g}: {rule}."]
    if alpha == 0.0:
        notes.append("No strength improves on the plain model by this rule, and alpha 0 corrects nothing.")
    whole = models_table({names[a]: rates for a, rates in found.items()}, metrics, f"{TITLE}, 95 % intervals (Wilson)")
    write_text(directory / f"{name}.md", markdown("CMRM by strength", [whole], notes))
    by_alpha = {f"{a:g}": dict(rates) for a, rates in found.items()}
    write_json(directory / f"{name}.json", {"chosen": alpha, "rule": rule, "alphas": by_alpha})
    rates_only = {names[a]: {metric: rates[metric] for metric in metrics} for a, rates in found.items()}
    return models_table(rates_only, metrics, TITLE), notes
