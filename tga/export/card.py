"""The model card (README.md) that travels with an exported model: where it comes from and what was measured.

A card states what is known and nothing else: base models, how the projector was trained, figures if there are any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tga._version import __version__


@dataclass(frozen=True)
class ModelCard:
    """What a reader of an exported model must know.

    Args:
        name: the model's name, the card's title.
        base_llm: directory or hub id of the language model.
        base_vision_tower: directory or hub id of the vision tower.
        method: how the projector was trained, one line (`tga, layers all, raw cosine`).
        settings: the settings of the training run that decide the result, by name.
        figures: measured figures by their key in summary.json.
        family: of `tga.vlm.families`, a tag on the hub.
    """

    name: str
    base_llm: str
    base_vision_tower: str
    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    family: str = "llava"


def render_card(card: ModelCard, usage: str) -> str:
    """The card as Markdown with the hub's YAML header; `usage` is the format's own section, Markdown."""
    header = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text", "tags:"]
    header += [f"- {card.family}", "- safety", "- tga", "---", ""]
    body = [f"# {card.name}", ""]
    body += ["A vision-language model whose projector was trained to inherit the safety of its language model.", ""]
    rows = [("language model", card.base_llm), ("vision tower", card.base_vision_tower), ("method", card.method)]
    rows += [("written by", f"tga-vlm {__version__}")]
    body += _table(("part", "what"), rows) + [""]
    if card.settings:
        body += ["## Training", ""] + _table(("setting", "value"), sorted(card.settings.items())) + [""]
    if card.figures:
        figures = [(key, _number(value)) for key, value in sorted(card.figures.items())]
        body += ["## Measured", "", "By `tga-evaluate`; rates from 0 to 1.", ""]
        body += _table(("figure", "value"), figures) + [""]
    body += ["## Use", "", usage.strip(), ""]
    body += ["## Limits", "", LIMITS, ""]
    return "\n".join(header + body)


LIMITS = """The base models' licences and limits hold for this model as well. A higher defence success rate on one
benchmark is no promise for other pictures, languages or attacks: measure on your own data before you rely on it."""


def _table(head: tuple[str, str], rows: list[tuple[str, object]] | list[tuple[str, str]]) -> list[str]:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return lines + [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]


def _cell(value: object) -> str:
    """One line; a bar would end the cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: float | int | None) -> str:
    if value is None:
        return "not measured"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
