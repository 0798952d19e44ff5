"""The evaluation suite: named metrics in, flat summary keys and judged answers out.

A metric names a question file, how its answers are judged and whether each group (scene) is reported too. A rate's keys
are `<metric>`, `<metric>_low`, `<metric>_high` (Wilson, 95 %), `<metric>_n` and, by group, the same with `_<group>`; a
cosine metric's keys are `<metric>_[centred_]{matched,mismatched}_layer_<l>`, those of the modality gap `<metric>_mir`
and `<metric>_{fid,l2,cosine,log_norm_ratio}_layer_<l>`. Every file is read before any question is asked.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tga.errors import UserError
from tga.evaluation.cosines import pair_cosines
from tga.evaluation.gap import modality_gap
from tga.evaluation.generate import Steer, answer_questions
from tga.evaluation.judges import JUDGES, JUDGES_WITH_EXPECTED
from tga.evaluation.questions import Question, read_questions, read_toxic_scenes
from tga.evaluation.rates import Rate, wilson
from tga.files import atomic_path
from tga.vlm.families import Family

KINDS = ("rate", "cosine", "modality_gap")
PAIR_KINDS = ("cosine", "modality_gap")  # of pictures and captions, nothing is asked
ANSWERS_FILE = "answers.jsonl"
SET = "evaluation.metrics.NAME={file: PATH, judge: refusal}"


@dataclass(frozen=True)
class Metric:
    """One metric: `file` is a JSONL of questions, or a folder of toxic scenes asked with `prompt`.

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
    layers: str | tuple[int, ...] = "all"
    pairs: int | None = 100
    text: str = "prompt"
    root: str = "accurate"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("a metric has an unknown kind", given=self.kind, allowed=KINDS, remedy=SET)
        if self.judge not in JUDGES:
            raise UserError("a metric has an unknown judge", given=self.judge, allowed=sorted(JUDGES), remedy=SET)


@dataclass(frozen=True)
class Judged:
    """One answer of a model and what the judge said; the row of answers.jsonl."""

    model: str
    metric: str
    id: str
    group: str
    prompt: str
    answer: str
    judged: bool


def metrics_from_config(root: Path | str, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics from plain values; `file` is relative to `root`. Raises UserError for an unknown setting."""
    known = set(Metric.__dataclass_fields__)
    made = {}
    for name, settings in metrics.items():
        unknown = sorted(set(settings) - known)
        if unknown or "file" not in settings:
            given = f"{name}: {dict(settings)}"
            problem = "a metric has an unknown setting or no file"
            raise UserError(problem, given=given, allowed=sorted(known), remedy=SET)
        values = {**settings, "file": Path(root) / settings["file"]}
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


def read_metric_questions(metrics: Mapping[str, Metric], limit: int | None = None) -> dict[str, list[Question]]:
    """The questions of every metric, all files read; UserError where a judge or cosine lacks what it needs."""
    if not metrics:
        raise UserError("there is no metric to evaluate", remedy="choose one with evaluation=NAME; --help lists them")
    found = {}
    for name, metric in metrics.items():
        if metric.prompt is not None:
            questions = read_toxic_scenes(metric.file, metric.prompt, limit=limit)
        else:
            questions = read_questions(metric.file, limit=limit)
        _refuse_lacking(metric, questions)
        found[name] = questions
    return found


def evaluate(
    model: Any,
    processor: Any,
    family: Family,
    metrics: Mapping[str, Metric],
    *,
    out_dir: Path | str,
    model_name: str = "model",
    chat_template: str = "tokenizer",
    plain_template: str = "plain",
    batch_size: int = 100,
    max_new_tokens: int = 48,
    limit: int | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> dict[str, float]:
    """Evaluate one model, write `out_dir/answers.jsonl` and return the flat summary values.

    limit: questions per metric (pictures per scene of a scenes folder); None asks all.
    seed: of the mismatched pairs. The model's weights, device and modes stay as they are.
    """
    questions = read_metric_questions(metrics, limit)
    values, judged = measure(
        model,
        processor,
        family,
        metrics,
        questions,
        model_name=model_name,
        chat_template=chat_template,
        plain_template=plain_template,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        show_progress=show_progress,
    )
    write_answers(Path(out_dir) / ANSWERS_FILE, judged)
    return values


def measure(
    model: Any,
    processor: Any,
    family: Family,
    metrics: Mapping[str, Metric],
    questions: Mapping[str, Sequence[Question]],
    *,
    model_name: str,
    chat_template: str,
    plain_template: str,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
    show_progress: bool,
    steer: Steer | None = None,
) -> tuple[dict[str, float], list[Judged]]:
    """Flat values and judged answers of one model on questions that are already read; writes nothing.

    steer: corrects the model while it answers questions with pictures; cosines are always those of the model itself.
    """
    values: dict[str, float] = {}
    judged: list[Judged] = []
    answered: dict[tuple[Path, str | None], list[str]] = {}  # metrics on the same questions share the answers
    templates = {"chat_template": chat_template, "plain_template": plain_template}
    for name, metric in metrics.items():
        asked = questions[name]
        if metric.kind in PAIR_KINDS:
            settings: dict[str, Any] = {"layers": metric.layers, "batch_size": batch_size, **templates}
            if metric.kind == "cosine":
                found = pair_cosines(model, processor, family, asked, seed=seed, **settings)
            else:
                settings |= {"text": metric.text, "root": metric.root}
                settings |= {"description": f"{model_name}: {name}", "show_progress": show_progress}
                found = modality_gap(model, processor, family, asked[: metric.pairs], **settings)
            values.update({f"{name}_{key}": value for key, value in found.items()})
            continue
        source = (metric.file, metric.prompt)
        if source not in answered:
            answered[source] = answer_questions(
                model,
                processor,
                family,
                asked,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                description=f"{model_name}: {name}",
                show_progress=show_progress,
                steer=steer,
                **templates,
            )
        rows = _judge(model_name, name, metric.judge, asked, answered[source])
        values.update(rate_values(name, rows, by_group=metric.by_group))
        judged.extend(rows)
    return values, judged


def rate_values(name: str, rows: Sequence[Judged], *, by_group: bool) -> dict[str, float]:
    """Flat keys of one rate, and with `by_group` of each group that has a name."""
    values = _flat(name, wilson(sum(row.judged for row in rows), len(rows)))
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        groups[key_part(row.group)].append(row.judged)
    if by_group:
        for group in sorted(filter(None, groups)):
            values.update(_flat(f"{name}_{group}", wilson(sum(groups[group]), len(groups[group]))))
    return values


def key_part(text: str) -> str:
    """A group's name as a piece of a key: lower case, words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def write_answers(path: Path, judged: Sequence[Judged]) -> None:
    """Write the judged answers, one JSON object per line, in place of an older file."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in judged:
            file.write(json.dumps(vars(row), ensure_ascii=False) + "\n")


def _judge(
    model: str, metric: str, judge: str, questions: Sequence[Question], answers: Collection[str]
) -> list[Judged]:
    decide = JUDGES[judge]
    return [
        Judged(model, metric, question.id, question.group, question.prompt, answer, decide(answer, question.expected))
        for question, answer in zip(questions, answers, strict=True)
    ]


def _flat(name: str, rate: Rate) -> dict[str, float]:
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high, f"{name}_n": rate.n}


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
