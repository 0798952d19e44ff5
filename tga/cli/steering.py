"""Steering for the commands: from the config group `steering` to what corrects a model while it is evaluated.

`tga-steer` and `tga-evaluate` do the same: take the vectors of a file or extract them from anchors, sweep the strength
on questions kept for choosing where a grid is given, and hand the evaluation a function that corrects the model around
each batch of questions with pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from retrieval_index.captions import hash_files
from tga._version import __version__
from tga.alignment.layers import resolve_layers
from tga.cli.steering_prompts import Meaningless, RequestShifts, Subject, anchor_differences
from tga.cli.steering_report import write_sweep
from tga.errors import UserError
from tga.evaluation.generate import Steer
from tga.evaluation.metrics import Metric, metrics_from_config, read_metric_questions, refuse_model_judges
from tga.evaluation.questions import Question, read_questions
from tga.evaluation.suite import Judged, measure
from tga.steering.choice import Rule, choose_alpha, sweep_grid
from tga.steering.cmrm import dataset_shift
from tga.steering.hooks import POSITIONS, Steering, steered
from tga.steering.pictures import PICTURES
from tga.steering.vectors import Vectors, describe_model, load_vectors, save_vectors
from tga.terminal import say
from tga.vlm.families import num_layers
from tga.vlm.modes import evaluating

METHODS = ("cmrm", "cmrm_sample")
DEFAULT_ALPHA = 1.0
PICTURE_FILE = "steering_picture.png"
VECTORS_FILE = "vectors.safetensors"
SWEEP = "sweep"  # .md and .json beside the vectors


@dataclass(frozen=True)
class Prepared:
    """Steering that is ready: `at(alpha)` corrects with that strength; None for 0, where there is nothing to do.

    Attributes:
        vectors: of the data-set level, None at the sample level.
        figures: flat numbers for a summary.
    """

    at: Callable[[float], Steer | None]
    vectors: Vectors | None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Questions for choosing a strength, the grid and the rule."""

    metrics: Mapping[str, Metric]
    questions: Mapping[str, Sequence[Question]]
    alphas: tuple[float, ...]
    rule: Rule


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what cannot be done before any model is loaded.

    Raises:
        UserError: an unknown method, picture or position, no source of vectors, two ways to a strength.
    """
    for key, allowed in (("method", METHODS), ("picture", PICTURES), ("positions", POSITIONS)):
        if settings[key] not in allowed:
            problem, remedy = f"steering.{key} has no such option", f"steering.{key}=..."
            raise UserError(problem, given=settings[key], allowed=", ".join(allowed), remedy=remedy)
    sample = settings["method"] == "cmrm_sample"
    if sample and settings["picture"] == "own":
        problem = "At the sample level the meaningless picture is one for all requests"
        raise UserError(problem, given="own", allowed="blank, noise, mean", remedy="steering.picture=blank")
    if settings["picture"] == "mean" and settings["mean_of"] is None:
        raise UserError("The mean of which pictures?", remedy="steering.mean_of=FILE, questions with pictures")
    if settings["alpha"] is not None and settings["alphas"] is not None:
        given = f"alpha {settings['alpha']}, alphas {settings['alphas']}"
        raise UserError("Either one strength or a grid to choose from", given=given, remedy="steering.alphas=null")
    if not sample and settings["vectors"] is None and settings["anchors"] is None:
        problem = "Steering by a data set needs vectors, or anchors to extract them from"
        raise UserError(problem, remedy="steering.vectors=PATH of tga-steer, or steering.anchors=FILE of questions")


def read_sweep(
    settings: Mapping[str, Any], evaluation: Mapping[str, Any], *, rule_only: bool, held_out_from: str | None = None
) -> Sweep | None:
    """The questions of a sweep, all files read; None without a grid.

    rule_only: ask what the rule looks at and nothing else; otherwise every rate whose questions have pictures.
    held_out_from: a root of questions that must be another one.

    Raises:
        UserError: a strange grid, no questions to choose on, or metrics of the rule that there are not.
    """
    if settings["alphas"] is None:
        return None
    choose = dict(settings["choose"])
    rule = Rule(**{**choose, "utility": tuple(choose["utility"])})
    alphas, root = sweep_grid(settings["alphas"]), settings["choose_root"]
    if root is None:
        problem = "A grid of strengths needs questions to choose on"
        raise UserError(problem, remedy="steering.choose_root=DIR with the files of evaluation.metrics")
    if held_out_from is not None and Path(root).resolve() == Path(held_out_from).resolve():
        problem = "The strength would be chosen on the questions that are reported"
        raise UserError(problem, given=root, remedy="steering.choose_root=DIR of other questions")
    named = metrics_from_config(root, evaluation["metrics"])
    missing = [name for name in rule.metrics if name not in named or named[name].kind != "rate"]
    if missing:
        there = ", ".join(name for name, metric in named.items() if metric.kind == "rate")
        remedy = "steering.choose.dsr=NAME, steering.choose.over_refusal=NAME, steering.choose.utility=[NAME]"
        problem = "The rule looks at rates that there are not"
        raise UserError(problem, given=", ".join(missing), allowed=there, remedy=remedy)
    rates = {name: replace(metric, by_group=False) for name, metric in named.items() if metric.kind == "rate"}
    asked = {name: metric for name, metric in rates.items() if name in rule.metrics or not rule_only}
    questions = read_metric_questions(asked, evaluation["limit"])
    pictured = {name for name, rows in questions.items() if any(row.image is not None for row in rows)}
    kept = {name: metric for name, metric in asked.items() if name in rule.metrics or name in pictured}
    refuse_model_judges(kept)
    return Sweep(kept, {name: questions[name] for name in kept}, alphas, rule)


def prepare_steering(settings: Mapping[str, Any], subject: Subject, directory: Path) -> Prepared:
    """Load or extract what corrects this model; a meaningless picture for all is left in `directory`.

    Raises:
        UserError: vectors of another model, layers that it or they do not have, anchors that cannot be read.
    """
    layers = _layers(settings["layers"], num_layers(subject.model, subject.family))
    picture = Meaningless(settings["picture"], settings["picture_size"], settings["seed"], settings["mean_of"])
    figures: dict[str, float] = {}
    vectors: Vectors | None = None
    shifts_of: Callable[[Sequence[Question]], Mapping[int, Tensor]]
    if settings["method"] == "cmrm_sample":
        of_requests = RequestShifts(subject, layers, picture.write(directory / PICTURE_FILE, subject))
        shifts_of = of_requests.by_layer
    else:
        if settings["vectors"] is not None:
            vectors = load_vectors(settings["vectors"], subject.model, subject.family)
        else:
            vectors, figures = _extract(settings, subject, layers, picture, directory)
        shifts = _chosen(vectors, layers, named=settings["layers"] != "all")
        shifts_of = _same_for_all(shifts)

    def at(alpha: float) -> Steer | None:
        def steer(questions: Sequence[Question]) -> AbstractContextManager[Steering]:
            options = {"alpha": alpha, "positions": settings["positions"]}
            return steered(subject.model, subject.family, shifts_of(questions), **options)

        return steer if alpha else None

    return Prepared(at, vectors, figures)


def _same_for_all(shifts: Mapping[int, Tensor]) -> Callable[[Sequence[Question]], Mapping[int, Tensor]]:
    return lambda _questions: shifts


def run_sweep(
    prepared: Prepared, subject: Subject, sweep: Sweep, asked: Mapping[str, Any]
) -> tuple[dict[float, dict[str, float]], list[Judged], float]:
    """The rates of every strength, the judged answers (model "alpha 0.4"), and the strength that the rule takes."""
    found: dict[float, dict[str, float]] = {}
    judged: list[Judged] = []
    for alpha in sweep.alphas:
        found[alpha], answers = measure(
            subject.model,
            subject.processor,
            subject.family,
            sweep.metrics,
            sweep.questions,
            model_name=f"alpha {alpha:g}",
            show_progress=True,
            steer=prepared.at(alpha),
            **asked,
        )
        judged += answers
    return found, judged, choose_alpha(found, sweep.rule)


def ready_steer(
    settings: Mapping[str, Any], subject: Subject, sweep: Sweep | None, asked: Mapping[str, Any], run_dir: Path
) -> tuple[Steer | None, dict[str, float]]:
    """What corrects this model in an evaluation, and `steering_...` figures of it.

    A strength is chosen first where there is a grid; its sweep and vectors that were extracted are left in `run_dir`.
    """
    started = time.perf_counter()
    directory = run_dir / f"steering_{subject.name}"
    prepared = prepare_steering(settings, subject, directory)
    if sweep is None:
        alpha = strength(settings, prepared)
    else:
        found, _, alpha = run_sweep(prepared, subject, sweep, asked)
        write_sweep(directory, found, list(sweep.metrics), alpha=alpha, rule=str(sweep.rule), name=SWEEP)
    if prepared.vectors is not None and settings["vectors"] is None:
        rule = "" if sweep is None else str(sweep.rule)
        save_vectors(directory / VECTORS_FILE, replace(prepared.vectors, alpha=alpha, rule=rule))
    say(f"{subject.name}: steering with alpha {alpha:g}")
    seconds = round(time.perf_counter() - started, 3)
    return prepared.at(alpha), {"steering_alpha": alpha, "steering_prepare_s": seconds}


def strength(settings: Mapping[str, Any], prepared: Prepared) -> float:
    """The strength without a sweep: the one that is set, the one chosen for the vectors, or 1."""
    if settings["alpha"] is not None:
        return float(settings["alpha"])
    chosen = prepared.vectors.alpha if prepared.vectors is not None else None
    return DEFAULT_ALPHA if chosen is None else chosen


def _layers(spec: str | Sequence[int], last: int) -> tuple[int, ...]:
    layers = resolve_layers(spec, last, key="steering.layers")
    if 0 in layers:
        problem, allowed = "Steering corrects what decoder layers put out", f"1 to {last}"
        raise UserError(problem, given="layer 0, the input embeddings", allowed=allowed, remedy="steering.layers=all")
    return layers


def _chosen(vectors: Vectors, layers: tuple[int, ...], *, named: bool) -> dict[int, Tensor]:
    """The shifts of the layers; UserError where layers were named that the vectors lack."""
    lacking = sorted(set(layers) - set(vectors.shifts)) if named else []
    if lacking:
        allowed = ", ".join(map(str, vectors.shifts))
        raise UserError("The vectors lack layers", given=lacking, allowed=allowed, remedy="steering.layers=all")
    return {layer: shift for layer, shift in vectors.shifts.items() if layer in layers}


def _extract(
    settings: Mapping[str, Any], subject: Subject, layers: tuple[int, ...], picture: Meaningless, directory: Path
) -> tuple[Vectors, dict[str, float]]:
    """Vectors of the anchors with their origin, and how long they are and how far the anchors agree, by layer."""
    started = time.perf_counter()
    anchors = read_questions(settings["anchors"], limit=settings["anchors_limit"])
    with evaluating(subject.model):
        differences = anchor_differences(subject, layers, anchors, picture, directory / PICTURE_FILE)
        found = dataset_shift(differences, direction=settings["direction"])
    origin = {
        "anchors": Path(settings["anchors"]).name,
        "anchors_sha256": hash_files([settings["anchors"]]),
        "anchors_n": str(found.count),
        "position": "last",
        "tga_version": __version__,
        "chat_template": subject.chat_template,
        "plain_template": subject.plain_template,
        **{key: str(settings[key]) for key in ("picture", "picture_size", "mean_of", "direction", "seed")},
    }
    figures: dict[str, float] = {"anchors_n": found.count}
    for layer, shift, agreement in zip(layers, found.shift, found.agreement.tolist(), strict=True):
        figures |= {f"shift_norm_layer_{layer}": float(shift.norm()), f"agreement_layer_{layer}": agreement}
    figures["extract_s"] = round(time.perf_counter() - started, 3)
    model = describe_model(subject.model, subject.family, subject.path)
    return Vectors(dict(zip(layers, found.shift, strict=True)), model, origin), figures
