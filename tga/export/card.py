"""The model card (README.md) that travels with an exported model: where it comes from and what was measured.

A card states what is known and nothing else, and nothing of the machine it was written on: no local path, no file's
contents. Its YAML header is the Hub's (`huggingface_hub.ModelCardData`); what others wrote (names, methods, settings)
is text in it, never Markdown, HTML or YAML.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tga._version import __version__
from tga.export.licence import OF_THE_BASE, Licence

HUB = "https://huggingface.co"
# Longer texts are no settings: fingerprints and other encoded data.
LONGEST_SETTING = 80
# The figures that a card shows: the first of each row that was measured, else the first metric that ends so.
HEADLINES = {
    "defence success rate with pictures": ("image_dsr", "_dsr"),
    "over-refusal": ("over_refusal", "_over_refusal"),
    "utility": ("vqa_accuracy", "_accuracy"),
}
OF_TEXTS = "text_"  # metrics without pictures
# What means something within a heading or a cell; an underscore does not within a word.
MARKDOWN = re.compile(r"[\\`*\[\]{}|~$#]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class ModelCard:
    """What a reader of an exported model must know.

    Args:
        name: the model's name, the card's title.
        base_llm: directory or hub id of the language model.
        base_vision_tower: directory or hub id of the vision tower.
        method: how the projector was trained, one line (`tga, layers all, raw cosine`).
        settings: the settings of the training run that decide the result, by name.
        figures: measured figures by their key in summary.json, a rate's interval under `_low` and `_high`.
        family: of `tga.vlm.families`, a tag on the hub.
        base_vlm: directory or hub id of the complete model, where it was not joined of parts.
        licence: of the exported model.
        datasets: hub ids of what it was trained on.
    """

    name: str
    base_llm: str
    base_vision_tower: str
    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    family: str = "llava"
    base_vlm: str | None = None
    licence: Licence = OF_THE_BASE
    datasets: tuple[str, ...] = ()


def render_card(card: ModelCard, usage: str) -> str:
    """The card as Markdown with the hub's YAML header; `usage` is the format's own section, Markdown."""
    header = ModelCardData(
        license=card.licence.identifier,
        license_name=card.licence.name,
        license_link=card.licence.link,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=_base_models(card) or None,
        datasets=list(card.datasets) or None,
        tags=[card.family, "safety", "tga"],
    )
    body = [f"# {escaped(card.name)}", ""]
    body += ["A vision-language model whose projector was trained to inherit the safety of its language model.", ""]
    rows: list[tuple[object, ...]] = [
        ("language model", public_name(card.base_llm)),
        ("vision tower", public_name(card.base_vision_tower)),
        ("method", card.method),
        ("licence", card.licence.described()),
        ("written by", f"tga-vlm {__version__}"),
    ]
    body += _table(("part", "what"), rows) + [""]
    if settings := [(key, value) for key, value in sorted(card.settings.items()) if _is_setting(value)]:
        body += ["## Training", ""] + _table(("setting", "value"), settings) + [""]
    if figures := headline_figures(card.figures):
        body += ["## Measured", "", "By `tga-evaluate`; rates from 0 to 1, with Wilson's 95 % intervals.", ""]
        body += _table(("figure", "value", "95 % interval", "answers", "what"), figures) + [""]
    body += ["## Use", "", usage.strip(), ""]
    body += ["## Limits", "", LIMITS, ""]
    return "\n".join(["---", header.to_yaml(), "---", "", *body])


LIMITS = """The base models' licences and limits hold for this model as well. A higher defence success rate on one
benchmark is no promise for other pictures, languages or attacks: measure on your own data before you rely on it."""


def is_hub_id(name: str) -> bool:
    """Whether `name` is `organisation/name` and no directory here."""
    if name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def public_name(name: str) -> str:
    """A hub id as it is; of a path of this machine, its last part alone."""
    return name if is_hub_id(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def headline_figures(figures: Mapping[str, float | int | None]) -> list[tuple[object, ...]]:
    """Rows of metric, value, interval, number of answers and meaning: at most one each of safety, cost and utility."""
    rows: list[tuple[object, ...]] = []
    for meaning, (name, ending) in HEADLINES.items():
        others = (key for key in figures if key.endswith(ending) and not key.startswith(OF_TEXTS))
        metric = name if figures.get(name) is not None else next(others, None)
        if metric is None or (value := figures[metric]) is None:
            continue
        low, high, answers = (figures.get(f"{metric}_{end}") for end in ("low", "high", "n"))
        interval = "-" if low is None or high is None else f"{low:.3g} to {high:.3g}"
        rows.append((metric, f"{value:.4g}", interval, "-" if answers is None else answers, meaning))
    return rows


def escaped(value: object) -> str:
    """`value` as one line of Markdown that shows it as it is: no control characters, no markup, no HTML."""
    shown = "".join(" " if unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") else sign for sign in str(value))
    shown = " ".join(shown.split())
    return MARKDOWN.sub(r"\\\g<0>", shown).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _base_models(card: ModelCard) -> list[str]:
    named = (card.base_vlm, card.base_llm, card.base_vision_tower)
    return list(dict.fromkeys(name for name in named if name is not None and is_hub_id(name)))


def _is_setting(value: object) -> bool:
    """What is no path and no encoded data."""
    text = str(value)
    return len(text) <= LONGEST_SETTING and not ("/" in text and not is_hub_id(text)) and "\\" not in text


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
