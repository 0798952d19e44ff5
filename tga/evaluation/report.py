"""Tables for people: in the terminal, as Markdown, and as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from retrieval_index.visible_text import visible
from tga.evaluation.rates import Interval
from tga.files import atomic_path
from tga.terminal import literal

ABSENT = "-"
ACTIVE = re.compile(r"<(?=[A-Za-z/!?])|(?<=\])[(\[]")  # of Markdown: what begins a tag, and a link's place
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #d5dae0; padding: .3rem .7rem; text-align: left; vertical-align: top; }
th { background: #f3f5f7; } td:first-child { font-weight: 600; }
.bar { display: block; height: 4px; background: #e3e8ee; margin-top: 3px; min-width: 5rem; }
.bar i { display: block; height: 4px; background: #2f6fb5; }
footer { margin-top: 2rem; color: #5b6470; }
"""


@dataclass(frozen=True)
class Table:
    """A titled table of texts; every row has as many cells as there are columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"rows of {len(self.columns)} cells expected, got {wrong[0]}")


def interval_text(interval: Interval | None, metric: str, *, signed: bool = False) -> str:
    """`0.742 [0.70, 0.78]`; times in seconds and memory in MiB with the digits they deserve; `-` for None."""
    if interval is None:
        return ABSENT
    mean = value_text(interval.mean, metric, signed=signed)
    if interval.low is None or interval.high is None:
        return mean
    low, high = (value_text(end, metric, signed=signed) for end in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def value_text(value: float | None, metric: str, *, signed: bool = False) -> str:
    """One number of a metric as text: three decimals for rates and cosines, none for MiB, one for seconds."""
    if value is None:
        return ABSENT
    digits = 0 if metric.endswith("_mib") else 1 if metric.endswith("_s") else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


def models_table(values: Mapping[str, Mapping[str, float]], metrics: Sequence[str], title: str) -> Table:
    """Metrics as rows and models side by side, with Wilson intervals where the values have them."""
    rows: list[list[str]] = []
    shares: dict[tuple[int, int], float] = {}
    for metric in metrics:
        row = [metric]
        for column, found in enumerate(values.values(), start=1):
            value = found.get(metric)
            low, high = found.get(f"{metric}_low"), found.get(f"{metric}_high")
            row.append(ABSENT if value is None else interval_text(Interval(value, low, high, 0), metric))
            if value is not None and low is not None and 0.0 <= value <= 1.0:
                shares[len(rows), column] = value
        rows.append(row)
    return Table(title, ["metric", *values], rows, shares)


def print_tables(tables: Sequence[Table], notes: Sequence[str], console: Console | None = None) -> None:
    """Tables and notes to the terminal."""
    console = console or Console()
    for table in tables:
        shown = RichTable(title=literal(table.title), box=box.SIMPLE_HEAD, title_justify="left")
        for column in table.columns:
            shown.add_column(literal(column), overflow="fold")
        for row in table.rows:
            shown.add_row(*map(literal, row))
        console.print(shown)
    for note in notes:
        console.print(literal(note))


def markdown(title: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables and notes as GitHub-flavoured Markdown."""
    parts = [f"# {_markdown(title)}", ""]
    for table in tables:
        rows = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts += [f"## {_markdown(table.title)}", "", *map(_markdown_row, rows), ""]
    parts += [f"- {_markdown(note)}" for note in notes]
    return "\n".join(parts).rstrip() + "\n"


def html_report(title: str, tables: Sequence[Table], notes: Sequence[str], footer: str = "") -> str:
    """Tables and notes as one HTML page with its style inside; shares get a bar."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{html.escape(title)}</h1>",
    ]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    parts += [_html_table(table) for table in tables]
    parts += [f"<footer>{html.escape(footer)}</footer>" if footer else "", "</body></html>", ""]
    return "\n".join(parts)


def write_text(path: Path, text: str) -> None:
    """Write a report, complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown(cell).replace("|", "\\|") for cell in cells) + " |"


def _markdown(text: str) -> str:
    """A text on one line of Markdown that makes no tag, link or picture: prompts and answers are other people's."""
    return ACTIVE.sub(r"\\\g<0>", visible(text.replace("\n", " ")).replace("\\", "\\\\"))


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = []
    for number, row in enumerate(table.rows):
        cells = []
        for column, cell in enumerate(row):
            share = table.shares.get((number, column))
            bar = "" if share is None else f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'
            cells.append(f"<td>{html.escape(cell)}{bar}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<h2>{html.escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
