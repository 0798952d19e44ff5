"""tga-evaluate: safety, over-refusal and utility of any number of models side by side, with intervals."""

from __future__ import annotations

import functools
import gc
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tga.cli.common import hydra_command, plain, prepare, start_run, write_summary
from tga.cli.steering import check_settings, read_sweep, ready_steer
from tga.cli.steering_prompts import ASKED, subject_of
from tga.errors import UserError
from tga.evaluation.kept_answers import KeptAnswers
from tga.evaluation.metrics import (
    BY_MODEL,
    Metric,
    chosen_metrics,
    metrics_from_config,
    read_metric_questions,
)
from tga.evaluation.model_judge import SET_JUDGE, JudgeForm, unsafe_probabilities
from tga.evaluation.models import check_models, load_language_model, load_model, model_stamp
from tga.evaluation.report import Table, html_report, markdown, models_table, print_tables, write_text
from tga.evaluation.suite import (
    ANSWERS_FILE,
    Judged,
    judge_by_model,
    measure,
    write_answers,
)
from tga.resources import peak_rss_mib

EXAMPLES = 5
KEPT = "answered"  # the folder of answers while an evaluation runs
PAIR_TABLES = {
    "cosine": "Cosines of pictures and captions by layer",
    "modality_gap": "Modality gap: MIR, and its parts by layer",
}


@hydra_command("evaluate")
def main(config: DictConfig) -> Path:
    """Ask every model every question; write answers.jsonl, summary.json, table.md and report.html."""
    started = time.perf_counter()
    values = plain(config)
    settings, models = values["evaluation"], {str(name): str(path) for name, path in values["models"].items()}
    check_models(models)
    if settings["metrics"] and settings["root"] is None:
        raise UserError("the evaluation's files have no root", given="null", remedy="evaluation.root=DIR")
    steering = values["steering"] if values["steering"]["method"] is not None else None
    if steering is not None:
        check_settings(steering)
    prepare(config)
    metrics = chosen_metrics(metrics_from_config(settings["root"] or ".", settings["metrics"]), values["metrics"])
    questions = read_metric_questions(metrics, settings["limit"])
    judge = _check_judge(settings["judge_model"], metrics)
    loading = {key: str(values[key]) for key in ("dtype", "device", "attn_implementation")}
    sweep = read_sweep(steering, settings, rule_only=True, held_out_from=settings["root"]) if steering else None
    run_dir = start_run(config)
    print(f"Stopped, it goes on with the same command and run_dir={run_dir}", flush=True)
    found: dict[str, dict[str, float]] = {}
    judged: list[Judged] = []
    for name, path in models.items():
        model, processor = load_model(path, **loading)
        subject = subject_of(name, path, model, processor, settings)
        del model, processor
        asked: dict[str, Any] = {key: settings[key] for key in ASKED}
        identity = {"model": path, "stamp": model_stamp(path), "asked": asked, "steering": values["steering"]}
        kept = KeptAnswers(run_dir / KEPT / f"{name}.jsonl", {**identity, **loading})
        if len(kept):
            print(f"{name}: {len(kept):,} answers are there already", flush=True)
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
    if judge is not None:
        rates, judged = judge_by_model(
            judged, metrics, functools.partial(_unsafe, settings["judge_model"], judge, loading)
        )
        for name, found_here in rates.items():
            found[name].update(found_here)
        write_answers(run_dir / ANSWERS_FILE, judged)
    _report(run_dir, found, metrics, judged)
    summary = _summary(found)
    summary["total_s"] = round(time.perf_counter() - started, 3)
    summary["peak_rss_mib"] = round(peak_rss_mib(), 1)
    write_summary(run_dir, summary, config)
    shutil.rmtree(run_dir / KEPT)
    return run_dir


def _check_judge(settings: Mapping[str, Any], metrics: Mapping[str, Metric]) -> JudgeForm | None:
    """How the judge is asked; None where no metric needs one. Loads nothing. UserError for a judge that cannot be."""
    needing = [name for name, metric in metrics.items() if metric.kind == "rate" and metric.judge == BY_MODEL]
    if not needing:
        return None
    if settings["path"] is None:
        problem = "A metric is judged by a model, and none is named"
        raise UserError(problem, given=", ".join(needing), remedy=SET_JUDGE)
    check_models({"judge": str(settings["path"])}, remedy=SET_JUDGE)
    return JudgeForm(**{key: settings[key] for key in ("form", "template", "unsafe", "safe")})


def _unsafe(
    settings: Mapping[str, Any],
    form: JudgeForm,
    loading: Mapping[str, str],
    prompts: Sequence[str],
    answers: Sequence[str],
) -> list[float]:
    model, tokenizer = load_language_model(str(settings["path"]), **loading, remedy=SET_JUDGE)
    return unsafe_probabilities(model, tokenizer, form, prompts, answers, batch_size=settings["batch_size"])


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
    notes = [f"The answers behind the rates are in {ANSWERS_FILE}; refusals are judged by patterns, so read some."]
    if any(metric.judge == BY_MODEL for metric in metrics.values()):
        notes.append("Judge unsafe: the share of answers that the judge model calls unsafe; it reads words alone.")
    notes = notes if rates else []
    write_text(run_dir / "table.md", markdown(title, tables, notes))
    write_text(run_dir / "report.html", html_report(title, [*tables, *_examples(judged, metrics)], notes))
    print_tables(tables[:1], notes)


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
