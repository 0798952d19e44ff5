"""tga-evaluate: safety, over-refusal and utility of any number of models side by side, with intervals."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tga.cli.common import hydra_command, plain, prepare, start_run, write_summary
from tga.cli.judging import LITTLE_MASS, judge_form, judge_pairs
from tga.cli.run_directory import run_directory
from tga.cli.steering import Sweep, check_settings, read_sweep, ready_steer
from tga.cli.steering_prompts import ASKED, subject_of
from tga.errors import UserError
from tga.evaluation.kept_answers import KeptAnswers, file_stamp, remove_kept
from tga.evaluation.metrics import Metric, chosen_metrics, judged_by_model, metrics_from_config, read_metric_questions
from tga.evaluation.models import check_models, load_model, model_stamp
from tga.evaluation.questions import Question
from tga.evaluation.report import Table, html_report, markdown, models_table, print_tables, write_text
from tga.evaluation.suite import ANSWERS_FILE, Judged, judge_again, judge_by_model, measure, write_answers
from tga.resources import peak_rss_mib
from tga.terminal import say

EXAMPLES = 5
KEPT, JUDGE = "answered", " judge.jsonl"  # what is there while an evaluation runs; no model has a blank in its name
PAIR_TABLES = {
    "cosine": "Cosines of pictures and captions by layer",
    "modality_gap": "Modality gap: MIR, and its parts by layer",
}


@hydra_command("evaluate")
def main(config: DictConfig) -> Path:
    """Ask every model every question; write answers.jsonl, summary.json, table.md and report.html."""
    started = time.perf_counter()
    values = plain(config)
    _check_what_is_evaluated(values)
    steering = values["steering"] if values["steering"]["method"] is not None else None
    if steering is not None:
        check_settings(steering)
    with run_directory(values["run_dir"]):
        return _evaluate(config, values, steering, started)


def _evaluate(
    config: DictConfig, values: Mapping[str, Any], steering: Mapping[str, Any] | None, started: float
) -> Path:
    """What the command does in its directory."""
    settings, models = values["evaluation"], _models(values)
    prepare(config)
    metrics = chosen_metrics(metrics_from_config(settings["root"] or ".", settings["metrics"]), values["metrics"])
    questions = read_metric_questions(metrics, settings["limit"])
    again = None if values["answers"] is None else judge_again(Path(values["answers"]), metrics, questions)
    judge = judge_form(settings["judge_model"], metrics)
    sweep = read_sweep(steering, settings, rule_only=True, held_out_from=settings["root"]) if steering else None
    loading = {key: str(values[key]) for key in ("dtype", "device", "attn_implementation")}
    run_dir = start_run(config)
    say(f"Stopped, it goes on with the same command and run_dir={run_dir}")
    if again is not None:
        found, judged = again
    else:
        found, judged = _ask(models, metrics, questions, values, loading, steering, sweep, run_dir)
    if judge is not None:
        pairs_judged = functools.partial(judge_pairs, settings["judge_model"], judge, loading, run_dir / KEPT / JUDGE)
        rates, judged = judge_by_model(judged, metrics, pairs_judged)
        for name, rates_of_model in rates.items():
            found[name].update(rates_of_model)
    write_answers(run_dir / ANSWERS_FILE, judged)
    _report(run_dir, found, metrics, judged)
    summary = _summary(found)
    summary["total_s"] = round(time.perf_counter() - started, 3)
    summary["peak_rss_mib"] = round(peak_rss_mib(), 1)
    write_summary(run_dir, summary, config)
    remove_kept(run_dir / KEPT)
    return run_dir


def _models(values: Mapping[str, Any]) -> dict[str, str]:
    """Name -> path."""
    return {str(name): str(path) for name, path in (values["models"] or {}).items()}


def _check_what_is_evaluated(values: Mapping[str, Any]) -> None:
    """UserError unless there are models that can be found or answers of before, and a root for the files of metrics."""
    models = _models(values)
    if values["answers"] is None:
        check_models(models)
    elif models or values["steering"]["method"] is not None:
        problem = "Answers of before are judged again without a model"
        raise UserError(problem, given=f"models={list(models)}", remedy="answers=null, or no models and no steering")
    run_dir = Path(values["run_dir"])
    if (run_dir / "checkpoints").is_dir():
        problem = "run_dir is a run of tga-train, whose config.yaml and summary.json this would replace"
        raise UserError(problem, given=run_dir, remedy="run_dir=ANOTHER")
    if values["evaluation"]["metrics"] and values["evaluation"]["root"] is None:
        raise UserError("the evaluation's files have no root", given="null", remedy="evaluation.root=DIR")


def _ask(
    models: Mapping[str, str],
    metrics: Mapping[str, Metric],
    questions: Mapping[str, Sequence[Question]],
    values: Mapping[str, Any],
    loading: Mapping[str, str],
    steering: Mapping[str, Any] | None,
    sweep: Sweep | None,
    run_dir: Path,
) -> tuple[dict[str, dict[str, float]], list[Judged]]:
    """Flat values of each model and all judged answers; one model is in memory at a time."""
    found: dict[str, dict[str, float]] = {}
    judged: list[Judged] = []
    settings = values["evaluation"]
    asked: dict[str, Any] = {key: settings[key] for key in ASKED}
    identity = {"asked": asked, "steering": values["steering"], "steered_by": _stamps(steering), **loading}
    for name, path in models.items():
        model, processor = load_model(path, **loading)
        subject = subject_of(name, path, model, processor, settings)
        del model, processor
        of_model = {"model": path, "stamp": model_stamp(path)}
        kept = KeptAnswers(run_dir / KEPT / f"{name}.jsonl", {**identity, **of_model})
        if len(kept):
            say(f"{name}: {len(kept):,} answers are there already")
        steer, figures = ready_steer(steering, subject, sweep, asked, run_dir) if steering else (None, {})
        found[name], answers = measure(
            subject.model,
            subject.processor,
            subject.family,
            metrics,
            questions,
            model_name=name,
            show_progress=True,
            steer=steer,
            kept=kept,
            **asked,
        )
        found[name].update(figures)
        judged.extend(answers)
        write_answers(run_dir / ANSWERS_FILE, judged)  # after each model: the next one may not fit, or be stopped
        del subject, steer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found, judged


def _stamps(steering: Mapping[str, Any] | None) -> list[tuple[str, int, int]]:
    """The files that a steering is taken from or chosen on, with their sizes and times of change."""
    if steering is None:
        return []
    named = [Path(steering[key]) for key in ("vectors", "anchors", "mean_of") if steering.get(key) is not None]
    if steering.get("choose_root") is not None:
        named += sorted(Path(steering["choose_root"]).glob("*"))
    return [file_stamp(path) for path in named if path.is_file()]


def _summary(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One model's keys as they are; several models' keys with the model's name before them."""
    if len(found) == 1:
        return dict(next(iter(found.values())))
    return {f"{name}_{key}": value for name, values in found.items() for key, value in values.items()}


def _report(
    run_dir: Path, found: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Metric], judged: list[Judged]
) -> None:
    """table.md and report.html beside the answers, and the rates in the terminal."""
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    rates = [key for key in keys if f"{key}_n" in keys]
    tables = [models_table(found, rates, "Rates with 95 % intervals (Wilson)")] if rates else []
    for kind, heading in PAIR_TABLES.items():
        names = tuple(f"{name}_" for name, metric in metrics.items() if metric.kind == kind)
        if measured := [key for key in keys if key not in rates and key.startswith(names)]:
            tables.append(models_table(found, measured, heading))
    title = "Evaluation of " + ", ".join(found)
    notes = [f"The answers behind the rates are in {ANSWERS_FILE}."]
    if any(metric.kind == "rate" and metric.judge == "refusal" for metric in metrics.values()):
        notes = [f"The answers behind the rates are in {ANSWERS_FILE}; refusals are judged by patterns, so read some."]
    if judged_by_model(metrics):
        notes.append("Judge unsafe: the share of answers that the judge model calls unsafe; it reads words alone.")
    if little := [name for name in judged_by_model(metrics) if _mass(found, name) < LITTLE_MASS]:
        named = ", ".join(little)
        notes.append(f"The judge would rarely have said either of its words about {named}: it may mean nothing.")
    notes = notes if rates else []
    write_text(run_dir / "table.md", markdown(title, tables, notes))
    write_text(run_dir / "report.html", html_report(title, [*tables, *_examples(judged, metrics)], notes))
    print_tables(tables[:1], notes)


def _mass(found: Mapping[str, Mapping[str, float]], name: str) -> float:
    """The least of the models' median masses of a metric that a model judges."""
    return min(values.get(f"{name}_mass", 1.0) for values in found.values())


def _examples(judged: list[Judged], metrics: Mapping[str, Metric]) -> list[Table]:
    """The first answers of each model to each metric, so that a reader sees what was judged."""
    tables = []
    for name, metric in metrics.items():
        shown: dict[str, list[Judged]] = {}
        for row in (row for row in judged if row.metric == name):
            shown.setdefault(row.model, []).append(row)
        rows = [
            [row.model, row.id, row.prompt, row.answer, "yes" if row.judged else "no"]
            for answers in shown.values()
            for row in answers[:EXAMPLES]
        ]
        if rows:
            tables.append(Table(f"{name}: first answers", ["model", "id", "prompt", "answer", metric.judge], rows))
    return tables


if __name__ == "__main__":
    main()
