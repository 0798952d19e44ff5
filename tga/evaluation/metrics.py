"""The metrics of an evaluation: their settings and the questions that each asks.

A metric names a file of questions (or a folder of toxic scenes, or a benchmark), what is measured, how its answers are
judged and whether each group (scene) is reported too. Every file is read before any question is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tga.errors import UserError
from tga.evaluation.benchmarks import LAYOUTS, SET_LAYOUT, read_benchmark
from tga.evaluation.judges import JUDGES, JUDGES_WITH_EXPECTED
from tga.evaluation.questions import Question, read_questions, read_toxic_scenes

KINDS = ("rate", "cosine", "modality_gap")
PAIR_KINDS = ("cosine", "modality_gap")  # of pictures and captions, nothing is asked
BY_MODEL = "unsafe"  # the judge that is a model, see tga.evaluation.model_judge
SET = "evaluation.metrics.NAME={file: PATH, judge: refusal}"


@dataclass(frozen=True)
class Metric:
    """One metric.

    file: a JSONL of questions, a folder of toxic scenes that are asked with `prompt`, or, where `layout` is named, a
    benchmark's own file or folder (tga.evaluation.benchmarks), with its `subset` and the folder of its `images`.
    beside: one picture that goes with every question of a layout that has none.

    kind: "rate" (share of answers that `judge` accepts), "cosine" (pictures against their captions by layer) or
    "modality_gap" (tga.evaluation.gap). by_group: report each group's rate as well. layers: of the latter two kinds,
    "all" or numbers in 0..L. pairs, text, root: of a modality gap: how many pairs, from the first on (None: all), where
    the caption stands, and which matrix root.
    """

    file: Path
    judge: str = "refusal"
    kind: str = "rate"
    by_group: bool = False
    prompt: str | None = None
    layout: str | None = None
    subset: str | None = None
    images: Path | None = None
    beside: Path | None = None
    layers: str | tuple[int, ...] = "all"
    pairs: int | None = 100
    text: str = "prompt"
    root: str = "accurate"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("a metric has an unknown kind", given=self.kind, allowed=KINDS, remedy=SET)
        if self.judge not in (*JUDGES, BY_MODEL):
            allowed = [*sorted(JUDGES), BY_MODEL]
            raise UserError("a metric has an unknown judge", given=self.judge, allowed=allowed, remedy=SET)
        alone = [key for key in ("subset", "images", "beside") if getattr(self, key) is not None]
        if alone and self.layout is None:
            problem = "a metric has settings of a benchmark's layout and names none"
            raise UserError(problem, given=", ".join(alone), allowed=sorted(LAYOUTS), remedy=SET_LAYOUT)


def metrics_from_config(root: Path | str, metrics: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Metric]:
    """Metrics from plain values (None: there are none); `file`, `images` and `beside` are relative to `root`.

    Raises UserError for an unknown setting.
    """
    known = set(Metric.__dataclass_fields__)
    made = {}
    for name, settings in (metrics or {}).items():
        unknown = sorted(set(settings) - known)
        if unknown or "file" not in settings:
            given = f"{name}: {dict(settings)}"
            problem = "a metric has an unknown setting or no file"
            raise UserError(problem, given=given, allowed=sorted(known), remedy=SET)
        paths = {key: Path(root) / settings[key] for key in ("file", "images", "beside") if settings.get(key)}
        values = {**settings, **paths}
        if not isinstance(values.get("layers", "all"), str):
            values["layers"] = tuple(values["layers"])
        made[name] = Metric(**values)
    return made


def chosen_metrics(metrics: Mapping[str, Metric], names: Sequence[str] | None) -> dict[str, Metric]:
    """The metrics of these names, in the evaluation's own order; all of them for None.

    Raises UserError for a name that the evaluation does not have.
    """
    unknown = [name for name in names or () if name not in metrics]
    if unknown:
        allowed = ", ".join(metrics) or "none: the evaluation has no metric"
        raise UserError("The evaluation has no such metric", given=unknown, allowed=allowed, remedy="metrics=[NAME]")
    return {name: metric for name, metric in metrics.items() if names is None or name in names}


def judged_by_model(metrics: Mapping[str, Metric]) -> list[str]:
    """The names of the metrics whose answers a model judges."""
    return [name for name, metric in metrics.items() if metric.kind == "rate" and metric.judge == BY_MODEL]


def refuse_model_judges(metrics: Mapping[str, Metric]) -> None:
    """UserError where a metric is judged by a model, which `tga-evaluate` alone does."""
    named = judged_by_model(metrics)
    if named:
        problem = "tga-evaluate alone has a model as a judge"
        remedy = f"~evaluation.metrics.{named[0]} here, and tga-evaluate afterwards"
        raise UserError(problem, given=named, allowed=sorted(JUDGES), remedy=remedy)


def read_metric_questions(metrics: Mapping[str, Metric], limit: int | None = None) -> dict[str, list[Question]]:
    """The questions of every metric, all files read; UserError where a judge or cosine lacks what it needs."""
    if not metrics:
        raise UserError("there is no metric to evaluate", remedy="choose one with evaluation=NAME; --help lists them")
    found = {}
    for name, metric in metrics.items():
        if metric.beside is not None and not metric.beside.is_file():
            remedy = "evaluation.metrics.NAME.beside=PATH below evaluation.root"
            raise UserError(
                "the picture that goes with every question does not exist", given=metric.beside, remedy=remedy
            )
        if metric.layout is not None:
            questions = read_benchmark(
                metric.file,
                metric.layout,
                subset=metric.subset,
                images=metric.images,
                beside=metric.beside,
                limit=limit,
            )
        elif metric.prompt is not None:
            questions = read_toxic_scenes(metric.file, metric.prompt, limit=limit)
        else:
            questions = read_questions(metric.file, limit=limit)
        _refuse_lacking(metric, questions)
        found[name] = questions
    return found


def _refuse_lacking(metric: Metric, questions: Sequence[Question]) -> None:
    """UserError where questions lack the expected answers, picture or caption that their metric needs."""
    if metric.kind in PAIR_KINDS:
        lacking = [question.id for question in questions if question.image is None or not question.caption]
        needed = "a picture and a caption"
    elif metric.judge in JUDGES_WITH_EXPECTED:
        lacking = [question.id for question in questions if not question.expected]
        needed = "expected answers"
    else:
        return
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(questions)} questions of {metric.file} lack {needed}",
            given=", ".join(lacking[:3]),
            remedy="complete the file or choose another judge",
        )
