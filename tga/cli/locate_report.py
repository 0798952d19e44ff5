"""The numbers of tga-locate as rows of figures, as flat keys of summary.json, and as a short table with its reading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tga.evaluation.rates import wilson
from tga.evaluation.report import Table, markdown, print_tables, value_text, write_text
from tga.localization.activation import LayerCounts
from tga.localization.windows import PLAIN, InsideOutside, Tally, window_name

Values = dict[str, float | int | str | bool | None]
COSINES = ("matched", "mismatched", "centred_matched", "centred_mismatched")
COLLISION = 0.5


def find_band(counts: LayerCounts, extent: str) -> tuple[int, int] | None:
    """First and last layer of the band, whole numbers; None where no prompt activates.

    extent: a name that ends in "quartiles" takes the middle half of the prompts, any other the smallest and largest.
    """
    ends = (0.25, 0.75) if extent.endswith("quartiles") else (0.0, 1.0)
    low, high = (counts.quantile(q) for q in ends)
    return None if low is None or high is None else (math.floor(low), math.ceil(high))


def band_values(prefix: str, counts: LayerCounts) -> Values:
    """`<prefix>band_{min,q1,median,q3,max}` (None without any activation) and `<prefix>share_without_activation`."""
    ends = {"min": 0.0, "q1": 0.25, "median": 0.5, "q3": 0.75, "max": 1.0}
    found: Values = {f"{prefix}band_{name}": counts.quantile(q) for name, q in ends.items()}
    return found | {f"{prefix}share_without_activation": counts.without / counts.total}


def activation_rows(toxic: LayerCounts, benign: LayerCounts | None) -> list[dict[str, Any]]:
    """By layer 1..L: the shares at which it fires, and the share of toxic prompts that activate there."""
    return [
        {
            "layer": layer,
            "toxic": toxic.fired_share(layer),
            "benign": None if benign is None else benign.fired_share(layer),
            "activated": toxic.activated.get(layer, 0) / toxic.total,
        }
        for layer in range(1, toxic.layers + 1)
    ]


def activation_values(toxic: LayerCounts, contrasted: LayerCounts, benign: LayerCounts | None) -> Values:
    """Everything of Algorithm 1 for the summary."""
    values: Values = {"toxic_prompts": toxic.total, "num_layers": toxic.layers, **band_values("", toxic)}
    values["toxic_share_opening_with_sorry"] = toxic.opening / toxic.total
    for row in activation_rows(toxic, benign):
        values[f"gain_share_layer_{row['layer']}"] = row["toxic"]
        if benign is not None:
            values[f"benign_gain_share_layer_{row['layer']}"] = row["benign"]
    if benign is not None:
        values |= band_values("contrast_", contrasted)
        values |= {"benign_prompts": benign.total, "benign_share_opening_with_sorry": benign.opening / benign.total}
        values["benign_share_with_activation"] = 1 - benign.without / benign.total
    return values


def window_rows(tallies: Mapping[str, Tally], windows: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """One row per condition, with the Wilson interval; `first` and `last` are null where it is no window."""
    ends = {window_name(window): window for window in windows}
    rows = []
    for name, tally in tallies.items():
        rate, (first, last) = wilson(tally.refused, tally.n), ends.get(name, (None, None))
        rows.append(
            {"condition": name, "first": first, "last": last, "refused": rate.value, "low": rate.low, "high": rate.high}
            | {"n": rate.n}
        )
    return rows


def window_values(plain: str, prefix: str, rows: Sequence[Mapping[str, Any]]) -> Values:
    """`<plain>` and `<prefix>_<condition>`, each with `_low`, `_high` and `_n`."""
    values: Values = {}
    for row in rows:
        key = plain if row["condition"] == PLAIN else f"{prefix}_{row['condition']}"
        values |= {key: row["refused"], f"{key}_low": row["low"], f"{key}_high": row["high"], f"{key}_n": row["n"]}
    return values


def knockout_values(split: InsideOutside) -> Values:
    """What windows that touch the band do against those that do not."""
    return {
        "knockout_inside_drop": split.inside,
        "knockout_outside_drop": split.outside,
        "knockout_inside_lowers_more": split.inside_lowers_more,
    }


def cosine_rows(cosines: Mapping[str, float], layers: int) -> list[dict[str, Any]]:
    """By layer 0..L the four cosines."""
    return [
        {"layer": layer, **{kind: cosines[f"{kind}_layer_{layer}"] for kind in COSINES}} for layer in range(layers + 1)
    ]


def reading(values: Mapping[str, Any], layers: Sequence[int], skipped: Sequence[int]) -> list[str]:
    """What the numbers say, in sentences."""
    said = []
    if not layers:
        said.append("No prompt activates at any layer, so there is no band. Does the model refuse in other words?")
    elif (without := values["share_without_activation"]) > 0:
        said.append(f"{without:.1%} of the toxic prompts have no activation layer; the band is that of the others.")
    opening = values.get("benign_share_opening_with_sorry", 0.0)
    if opening > COLLISION:
        said.append(
            f"A token of the sorry set opens the answer to {opening:.0%} of the benign prompts: it tells no refusal. "
            "Take it out with localization.ordinary_openings=[...], or read the contrasted band."
        )
    if (more := values.get("knockout_inside_lowers_more")) is not None:
        inside, outside = values["knockout_inside_drop"], values["knockout_outside_drop"]
        said.append(
            f"Blocking the toxic words lowers text DSR by {inside:.3f} in windows that touch the band and by "
            f"{outside:.3f} in the others: {'more' if more else 'not more'} within the band."
        )
    elif "knockout_inside_drop" in values:
        said.append("Every window touches the band, or none does: there is no outside to compare with.")
    if skipped:
        listed = " and ".join(map(str, skipped))
        said.append(f"Figures {listed} need a model with pictures: vlm=PATH, or localization.projector=baseline.")
    return said


def report(path: Path, values: Mapping[str, Any], layers: Sequence[int], skipped: Sequence[int]) -> None:
    """The short table and its reading: in the terminal and as Markdown at `path`."""
    table, said = _short_table(values, layers), reading(values, layers, skipped)
    write_text(path, markdown(f"Where safety activates in {values['model']}", [table], said))
    print_tables([table], said)


def _short_table(values: Mapping[str, Any], layers: Sequence[int]) -> Table:
    shown = ["band_min", "band_median", "band_max", "share_without_activation", "contrast_band_min"]
    shown += ["contrast_band_median", "contrast_band_max", "contrast_share_without_activation"]
    shown += [key for key in values if _is_rate(key, values)]
    rows = []
    for key in shown:
        if values.get(key) is None:
            continue
        interval = ""
        if f"{key}_low" in values:
            interval = f"{value_text(values[f'{key}_low'], key)} - {value_text(values[f'{key}_high'], key)}"
        rows.append([key, value_text(values[key], key), interval])
    title = f"Located layers: {' '.join(map(str, layers)) or 'none'}"
    return Table(title, ["figure", "value", "95 % interval"], rows)


def _is_rate(key: str, values: Mapping[str, Any]) -> bool:
    return f"{key}_n" in values
