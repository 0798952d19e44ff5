"""tga-steer: CMRM vectors of one model with their origin, and the strength that a sweep chooses for them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tga.cli.common import hydra_command, plain, prepare, start_run, write_summary
from tga.cli.run_directory import run_directory
from tga.cli.steering import VECTORS_FILE, check_settings, prepare_steering, read_sweep, run_sweep, strength
from tga.cli.steering_prompts import ASKED, subject_of
from tga.cli.steering_report import write_sweep
from tga.errors import UserError
from tga.evaluation.models import check_models, load_model
from tga.evaluation.report import print_tables
from tga.evaluation.suite import ANSWERS_FILE, write_answers
from tga.resources import peak_rss_mib
from tga.steering.vectors import save_vectors
from tga.terminal import say


@hydra_command("steer")
def main(config: DictConfig) -> Path:
    """Extract vectors, sweep the strength; write vectors.safetensors, answers.jsonl, summary.json and table.md."""
    started = time.perf_counter()
    values = plain(config)
    settings, path = values["steering"], str(values["vlm"])
    check_settings(settings)
    if settings["method"] == "cmrm_sample" and settings["alphas"] is None:
        problem = "At the sample level there are no vectors to extract, and nothing to choose without a grid"
        raise UserError(problem, remedy="steering.alphas=[0,0.5,1.0], or steering=cmrm")
    check_models({"vlm": path})
    with run_directory(values["run_dir"]):
        return _steer(config, values, started)


def _steer(config: DictConfig, values: Mapping[str, Any], started: float) -> Path:
    """What the command does in its directory."""
    settings, evaluation, path = values["steering"], values["evaluation"], str(values["vlm"])
    prepare(config)
    sweep = read_sweep(settings, evaluation, rule_only=False)
    run_dir = start_run(config)
    loading = {key: str(values[key]) for key in ("dtype", "device", "attn_implementation")}
    subject = subject_of("vlm", path, *load_model(path, **loading), evaluation)
    prepared = prepare_steering(settings, subject, run_dir)
    summary: dict[str, Any] = dict(prepared.figures)
    alpha, rule = strength(settings, prepared), ""
    if sweep is not None:
        sweep_started = time.perf_counter()
        asked = {key: evaluation[key] for key in ASKED}
        found, judged, alpha = run_sweep(prepared, subject, sweep, asked)
        rule = str(sweep.rule)
        write_answers(run_dir / ANSWERS_FILE, judged)
        table, notes = write_sweep(run_dir, found, list(sweep.metrics), alpha=alpha, rule=rule, name="table")
        print_tables([table], notes)
        summary |= {f"alpha_{a:g}_{key}": value for a, rates in found.items() for key, value in rates.items()}
        summary |= {f"baseline_{key}": found[0.0][key] for key in sweep.metrics}
        summary |= {f"chosen_{key}": found[alpha][key] for key in sweep.metrics}
        summary |= {"rule": rule, "sweep_s": round(time.perf_counter() - sweep_started, 3)}
    if prepared.vectors is not None:
        chosen = alpha if sweep is not None or settings["alpha"] is not None else prepared.vectors.alpha
        vectors = replace(prepared.vectors, alpha=chosen, rule=rule or prepared.vectors.rule)
        save_vectors(run_dir / VECTORS_FILE, vectors)
        say(f"Vectors: {run_dir / VECTORS_FILE}")
    summary |= {"alpha": alpha, "total_s": round(time.perf_counter() - started, 3)}
    write_summary(run_dir, {**summary, "peak_rss_mib": round(peak_rss_mib(), 1)}, config)
    return run_dir


if __name__ == "__main__":
    main()
