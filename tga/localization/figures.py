"""The figures as PNG files and, beside each, the numbers behind it as JSON lines.

Drawn without a display and without pyplot's global state. A row of the data is one point of the figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tga.files import atomic_path
from tga.localization.windows import PLAIN

Row = Mapping[str, Any]
Band = tuple[float, float] | None

SIZE, DPI = (6.4, 3.6), 150
PINK, RED, BLUE, GREY, GREEN = "#f6c9d4", "#b5283a", "#2f6fb5", "#8a8f98", "#2e8b57"
BAND_LABEL = "safety-activation layers"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object per line, complete or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def draw_activation(folder: Path, rows: Sequence[Row], band: Band) -> None:
    """`activation.png`: by layer, the share of toxic and of benign prompts at which a sorry token has the top gain.

    rows: layer, toxic, benign (or None), activated (share of toxic prompts that activate there).
    """
    figure, axes = _axes("Where a refusal begins", "decoder layer", "share of prompts")
    _mark(axes, band)
    layers = [row["layer"] for row in rows]
    axes.bar(layers, [row["activated"] for row in rows], color=RED, alpha=0.35, label="activation layer, toxic")
    axes.plot(layers, [row["toxic"] for row in rows], color=RED, marker="o", label="sorry has the top gain, toxic")
    if all(row["benign"] is not None for row in rows):
        axes.plot(
            layers, [row["benign"] for row in rows], color=BLUE, marker="o", label="sorry has the top gain, benign"
        )
    axes.set_ylim(0, 1.02)
    _save(figure, axes, folder / "activation", rows)


def draw_attention(folder: Path, rows: Sequence[Row], band: Band) -> None:
    """`figure2.png`: attention share from the last position to the toxic words by layer.

    rows: layer, mean, std (over prompts), even (what even attention would give).
    """
    figure, axes = _axes("Attention of the last position to the toxic words", "decoder layer", "attention share")
    _mark(axes, band)
    layers, means = [row["layer"] for row in rows], [row["mean"] for row in rows]
    low, high = ([max(0.0, row["mean"] + sign * row["std"]) for row in rows] for sign in (-1, 1))
    axes.fill_between(layers, low, high, color=RED, alpha=0.15, label="± one standard deviation over prompts")
    axes.plot(layers, means, color=RED, marker="o", label="mean over prompts")
    axes.axhline(rows[0]["even"], color=GREY, linestyle="--", label="even attention")
    axes.set_ylim(bottom=0)
    _save(figure, axes, folder / "figure2", rows)


def draw_windows(
    folder: Path, name: str, rows: Sequence[Row], band: Band, *, title: str, plain: str, benign: Sequence[Row] = ()
) -> None:
    """`<name>.png`: the share refused by window of layers with its interval, beside that of the untouched model.

    rows, benign: condition, first, last (None where it is no window), refused, low, high, n; of toxic and, where there
    are any, of harmless prompts. plain: what the untouched model is called. The data has a `set` besides.
    """
    figure, axes = _axes(title, "layers of the window", "share refused")
    _mark(axes, band)
    for kind, color, found in (("toxic", RED, rows), ("benign", BLUE, benign)):
        windows = [row for row in found if row["first"] is not None]
        centres = [(row["first"] + row["last"]) / 2 for row in windows]
        rates = [row["refused"] for row in windows]
        below = [max(0.0, row["refused"] - row["low"]) for row in windows]
        above = [max(0.0, row["high"] - row["refused"]) for row in windows]
        if windows:
            label = f"{kind}, 95 % interval"
            axes.errorbar(centres, rates, yerr=[below, above], color=color, marker="o", capsize=2, label=label)
            axes.set_xticks(centres, [f"{row['first']}-{row['last']}" for row in windows], fontsize=7)
        for row in found:
            if row["condition"] == PLAIN:
                axes.axhline(row["refused"], color=color, linestyle="--", linewidth=1, label=f"{kind}, {plain}")
    if len(rows) > 10:
        axes.tick_params(axis="x", rotation=90)
    axes.set_ylim(-0.02, 1.02)
    data = [{"set": kind, **row} for kind, found in (("toxic", rows), ("benign", benign)) for row in found]
    _save(figure, axes, folder / name, data)


def draw_cosines(folder: Path, rows: Sequence[Row], band: Band, retriever: Mapping[str, float] | None) -> None:
    """`figure4.png`: cosine of pictures and their captions by layer, raw and centred, for right and wrong pairs.

    rows: layer, matched, mismatched, centred_matched, centred_mismatched. retriever: the same two of the retriever's
    own embeddings, as lines of reference.
    """
    figure, axes = _axes("Pictures and texts of the same meaning", "layer (0: input embeddings)", "cosine")
    _mark(axes, band)
    layers = [row["layer"] for row in rows]
    for key, color, label in (
        ("matched", RED, "raw"),
        ("mismatched", RED, "raw, wrong pairs"),
        ("centred_matched", BLUE, "centred"),
        ("centred_mismatched", BLUE, "centred, wrong pairs"),
    ):
        style = ":" if "mismatched" in key else "-"
        axes.plot(layers, [row[key] for row in rows], color=color, linestyle=style, marker=".", label=label)
    if retriever is not None:
        axes.axhline(retriever["matched"], color=GREEN, linestyle="--", label="retriever")
        axes.axhline(retriever["mismatched"], color=GREEN, linestyle=":", label="retriever, wrong pairs")
    reference = [] if retriever is None else [{"layer": None, **retriever}]
    _save(figure, axes, folder / "figure4", [*rows, *reference])


def _axes(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _mark(axes: Axes, band: Band) -> None:
    if band is not None:
        axes.axvspan(band[0] - 0.5, band[1] + 0.5, color=PINK, alpha=0.6, linewidth=0, label=BAND_LABEL)


def _save(figure: Figure, axes: Axes, stem: Path, rows: Sequence[Row]) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    with atomic_path(stem.with_suffix(".png")) as path:
        figure.savefig(path, format="png")
    write_rows(stem.with_suffix(".jsonl"), rows)
