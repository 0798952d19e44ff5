"""From the finished runs of a comparison to its tables: read what they wrote, compare, write Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tga.evaluation.bootstrap import Resampled, bootstrap_differences, read_judgements
from tga.evaluation.cells import Cell, cell_summary
from tga.evaluation.comparison import (
    SHARED_METRICS,
    bootstrap_table,
    differences_table,
    groups_table,
    layer_mean,
    means_table,
    notes,
    numbers_only,
)
from tga.evaluation.report import Table, html_report, markdown, print_tables, write_text
from tga.evaluation.suite import ANSWERS_FILE

TRAINING_COSTS = ("train_s", "samples_per_s", "steps", "trainable_parameters")  # those of the trained method beneath


@dataclass(frozen=True)
class Results:
    """What the runs say.

    Attributes:
        numbers: (method, seed) -> the numbers of the run's summary, with the means over layers that were asked for.
        bootstrap: (method, rate) -> its difference to the baseline, resampled.
        groups: metric -> the keys of its groups' rates.
    """

    numbers: dict[tuple[str, int], dict[str, float]]
    bootstrap: dict[tuple[str, str], Resampled]
    groups: dict[str, list[str]]


def read_results(cells: Sequence[Cell], values: Mapping[str, Any]) -> Results:
    """Read the summaries and answers of finished cells. values: the plain config of the comparison."""
    metrics = values["evaluation"]["metrics"]
    by_group = [name for name, metric in metrics.items() if metric.get("by_group")]
    judged = {(cell.method, cell.seed): read_judgements(cell.directory / ANSWERS_FILE, by_group) for cell in cells}
    rates = sorted({rate for found in judged.values() for rate in found})
    groups = {
        name: [rate for rate in rates if rate.startswith(f"{name}_") and rate not in metrics] for name in by_group
    }
    bootstrap = bootstrap_differences(judged, values["methods"], values["baseline"], leave_out=SHARED_METRICS)
    return Results({(cell.method, cell.seed): _numbers(cell, values) for cell in cells}, bootstrap, groups)


def _numbers(cell: Cell, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one run; what a steered method's training cost is what its trained method's did."""
    numbers = numbers_only(cell_summary(cell) or {})
    if cell.after is not None:
        beneath = numbers_only(cell_summary(cell.after) or {})
        numbers |= {key: beneath[key] for key in TRAINING_COSTS if key in beneath}
    layers = values["safety_layers"] if isinstance(values["safety_layers"], list) else None
    for name, pattern in values["layer_means"].items():
        mean = layer_mean(numbers, pattern, layers)
        if mean is not None:
            numbers[name] = mean
    return numbers


def write_report(report_dir: Path, results: Results, values: Mapping[str, Any], *, runs: Path) -> None:
    """table.md and report.html with every table, and all of them in the terminal. runs: where the runs are."""
    methods, baseline, columns = values["methods"], values["baseline"], values["columns"]
    tables = [means_table(results.numbers, methods, columns)]
    if baseline in methods and len(methods) > 1:
        tables.append(differences_table(results.numbers, methods, baseline, columns))
        if any(metric in columns for _, metric in results.bootstrap):
            tables.append(bootstrap_table(results.bootstrap, methods, baseline, columns))
    scenes = [groups_table(results.numbers, methods, metric, rates) for metric, rates in results.groups.items()]
    said = notes(results.numbers, methods, baseline, columns, results.bootstrap)
    text = {key: found[key] for found in results.numbers.values() for key in SHARED_METRICS if key in found}
    said[:0] = [f"{key} {value:.3f}: the language model alone, whatever the projector." for key, value in text.items()]
    said += _about_variants(values) + _about_steered(values)
    known = {key for found in results.numbers.values() for key in found}
    if nowhere := [column for column in columns if column not in known]:
        said.append(f"No run has a number for: {', '.join(nowhere)}. The keys are those of the runs' summary.json.")
    title = f"{', '.join(methods)} over seeds {', '.join(map(str, values['seeds']))}"
    everything: list[Table] = [*tables, *(table for table in scenes if table is not None)]
    write_text(report_dir / "table.md", markdown(title, everything, said))
    write_text(report_dir / "report.html", html_report(title, everything, said, footer=f"Runs: {runs}"))
    print_tables(everything, said)


def _about_variants(values: Mapping[str, Any]) -> list[str]:
    """What a variant is, in a sentence each."""
    variants = values["variants"]
    return [
        f"{name}: {variants[name]['of']}, trained with {' '.join(variants[name]['overrides'])}."
        for name in values["methods"]
        if name in variants
    ]


def _about_steered(values: Mapping[str, Any]) -> list[str]:
    """What a steered method is, in a sentence each: its name alone does not say."""
    steered = values["steered"]
    return [
        f"{name}: the checkpoints of {steered[name]['of']}, evaluated with {' '.join(steered[name]['overrides'])}; "
        f"its training costs are those of {steered[name]['of']}."
        for name in values["methods"]
        if name in steered
    ]
