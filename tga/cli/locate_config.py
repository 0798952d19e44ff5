"""From the config of tga-locate to questions and settings, with every mistake found before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tga.errors import UserError
from tga.evaluation.questions import Question, read_questions
from tga.localization.activation import check_variant

FIGURES = (2, 3, 4, 5)
PICTURED = (4, 5)  # figures that need a model with pictures
LAYERS_FROM = ("band", "quartiles", "contrast_band", "contrast_quartiles")
TOXIC_TOKENS = ("marked", "message")


@dataclass(frozen=True)
class Asked:
    """The questions of a run. Empty where nothing needs them."""

    text_toxic: Sequence[Question]
    text_benign: Sequence[Question]
    image_toxic: Sequence[Question]
    image_benign: Sequence[Question]
    pairs: Sequence[Question]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse options that do not exist.

    Raises:
        UserError: the first such one.
    """
    check_variant(settings["variant"])
    options: list[tuple[str, Any, Sequence[Any]]] = [
        ("layers_from", settings["layers_from"], LAYERS_FROM),
        ("toxic_tokens", settings["toxic_tokens"], TOXIC_TOKENS),
        *(("figures", figure, FIGURES) for figure in settings["figures"]),
    ]
    for name, given, allowed in options:
        if given not in allowed:
            listed = ", ".join(map(str, allowed))
            problem = f"localization.{name} has no such option"
            raise UserError(problem, given=given, allowed=listed, remedy=f"localization.{name}=...")
    share = settings["contrast_share"]
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise UserError(
            "A share of the prompts lies between 0 and 1", given=share, remedy="localization.contrast_share=0.5"
        )


def wanted_figures(settings: Mapping[str, Any], pictures: bool) -> list[int]:
    """The figures to draw, in order; without a model that knows pictures those that need none."""
    return sorted({figure for figure in settings["figures"] if pictures or figure not in PICTURED})


def read_asked(settings: Mapping[str, Any], evaluation: Mapping[str, Any], figures: Sequence[int]) -> Asked:
    """Read every question file that the figures need, and check that the questions have what is needed of them.

    Raises:
        UserError: no root, a missing file, or questions without marked words, a picture or a caption.
    """
    if evaluation["root"] is None:
        raise UserError("The question files have no root", given="null", remedy="evaluation.root=DIR")
    root, limit, files = Path(evaluation["root"]), evaluation["limit"], settings["files"]

    def questions(name: str, needed: bool) -> list[Question]:
        if not needed:
            return []
        if files[name] is None:
            raise UserError(
                f"What is asked for needs the file {name}", given="null", remedy=f"localization.files.{name}=PATH"
            )
        return read_questions(root / files[name], limit=limit)

    asked = Asked(
        text_toxic=questions("text_toxic", needed=True),
        text_benign=questions("text_benign", needed=files["text_benign"] is not None),
        image_toxic=questions("image_toxic", needed=5 in figures),
        image_benign=questions("image_benign", needed=5 in figures and files["image_benign"] is not None),
        pairs=questions("pairs", needed=4 in figures),
    )
    _check_words(asked.text_toxic, root / files["text_toxic"], settings, figures)
    for name, pictured in (("image_toxic", asked.image_toxic), ("image_benign", asked.image_benign)):
        _refuse_lacking([question for question in pictured if question.image is None], pictured, "a picture", name)
    bare = [q for q in asked.pairs if q.image is None or not q.caption]
    _refuse_lacking(bare, asked.pairs, "a picture and a caption", "pairs")
    if "contrast" in settings["layers_from"] and not asked.text_benign:
        remedy = "localization.files.text_benign=PATH, or localization.layers_from=band"
        raise UserError("The contrasted band needs benign prompts", given="null", remedy=remedy)
    return asked


def toxic_words(question: Question, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts of the prompt that count as toxic words."""
    return (question.prompt,) if settings["toxic_tokens"] == "message" else question.toxic


def _check_words(
    questions: Sequence[Question], file: Path, settings: Mapping[str, Any], figures: Sequence[int]
) -> None:
    if not {2, 3, 5} & set(figures):
        return
    unmarked = [question.id for question in questions if not any(toxic_words(question, settings))]
    if unmarked:
        raise UserError(
            f"{len(unmarked)} of {len(questions)} prompts of {file} do not say which of their words are toxic",
            given=", ".join(unmarked[:3]),
            allowed='"toxic": "WORDS" (or a list of them), parts of the prompt, in each row',
            remedy="add the field, or localization.toxic_tokens=message to take all of the user's words",
        )


def _refuse_lacking(lacking: Sequence[Question], questions: Sequence[Question], needed: str, name: str) -> None:
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(questions)} questions of {name} lack {needed}",
            given=", ".join(question.id for question in lacking[:3]),
            remedy=f"complete the file, or localization.files.{name}=PATH",
        )
