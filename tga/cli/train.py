"""tga-train: prepare, index, neighbours, training, evaluation, export, and a table of what came out.

What is there already is not made again. All that can be wrong with the config, the model, the data and the questions
is found before the index is built or a step is taken.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from tga.alignment.objective import Objective
from tga.cli.build_index import EncoderChoice, ensure_index, ensure_neighbours
from tga.cli.common import config_hash, hydra_command, plain, prepare, start_run, write_summary
from tga.cli.data import read_samples
from tga.cli.locks import exclusive
from tga.cli.train_config import (
    DTYPES,
    build_objectives,
    check_choices,
    check_located_layers,
    projector_calibration,
    train_settings,
    with_located_layers,
)
from tga.data.collate import Collator
from tga.data.loading import with_neighbours
from tga.data.sample import Sample
from tga.evaluation.suite import Metric, evaluate, metrics_from_config, read_metric_questions
from tga.export.run import card_of, export_source
from tga.export.source import source_from_checkpoint
from tga.resources import peak_rss_mib
from tga.training.base_model import BaseModel
from tga.training.callbacks import terminal
from tga.training.run import fit
from tga.training.settings import FitResult
from tga.vlm.families import Family, component, family_of, num_layers
from tga.vlm.image_tokens import check_image_tokens

BASE_FIELDS = tuple(field.name for field in dataclasses.fields(BaseModel))
# Keys of an evaluation that say where its files are, not how they are asked.
NOT_ASKED = ("root", "metrics", "anchors", "choose_root")


@dataclasses.dataclass
class Stopwatch:
    """Seconds by stage, as keys of the summary."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as `<name>_s`."""
        started = time.perf_counter()
        yield
        self.seconds[f"{name}_s"] = round(time.perf_counter() - started, 3)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What the config names, loaded and checked."""

    base: BaseModel
    model: Any
    processor: Any
    family: Family
    objectives: list[Objective]
    metrics: dict[str, Metric]
    samples: Sequence[Sample]
    collator: Collator


@hydra_command("train")
def main(config: DictConfig) -> Path:
    """Run all stages; returns the run directory."""
    started, watch, console = time.perf_counter(), Stopwatch(), terminal()
    values = plain(config)
    check_choices(values)
    values["alignment"] = with_located_layers(values["alignment"])
    settings, calibration = train_settings(values["training"]), projector_calibration(values["model"]["calibration"])
    with watch.stage("prepare"):
        prepare(config)
    with watch.stage("load"):
        loaded = _load(values)
    samples = loaded.samples
    if values["alignment"]["retrieved"] != "none":
        samples = with_neighbours(samples, _neighbours(values, samples, watch), used=values["data"]["neighbours_used"])
    run_dir = start_run(config)
    console.print(f"Run directory: {run_dir}\nIf it stops, continue with: {resume_command(run_dir)}", soft_wrap=True)
    with watch.stage("fit"):
        result = fit(
            loaded.model,
            loaded.family,
            loaded.collator,
            samples,
            loaded.objectives,
            settings,
            run_dir,
            train=values["model"]["train"],
            centred=values["alignment"]["centred"],
            calibration=calibration,
            hyper_parameters=_hyper_parameters(config, values, loaded.base),
            ckpt_path=values["ckpt_path"],
            console=console,
        )
    with watch.stage("evaluate"):
        measured = _evaluate(loaded, values["evaluation"], run_dir, result.device)
    del loaded  # the export loads the checkpoint anew, which also proves that it holds everything
    with watch.stage("export"):
        exported = _export(result, values, run_dir, measured)
    summary = _training_summary(result, values) | measured | watch.seconds
    summary |= {"total_s": round(time.perf_counter() - started, 3), "peak_rss_mib": round(peak_rss_mib(), 1)}
    write_summary(run_dir, summary, config)
    _print_outcome(summary, measured, result, exported, run_dir)
    return run_dir


def _load(values: Mapping[str, Any]) -> Loaded:
    """Load the model, read the data and the questions, and check the config against them."""
    base = BaseModel(**{name: values["model"][name] for name in BASE_FIELDS})
    dtype, attention = DTYPES[values["model"]["dtype"]], values["model"]["attn_implementation"]
    data, alignment = values["data"], values["alignment"]
    metrics = _metrics(values["evaluation"])
    samples = read_samples(data)
    model, processor = base.load(dtype=dtype, attn_implementation=attention)
    family = family_of(model)
    collator = Collator(
        processor,
        data["template"],
        image_tokens=check_image_tokens(model, family, processor),
        retrieved=alignment["retrieved"],
        max_length=data["max_length"],
    )
    check_located_layers(alignment, model, family)
    objectives = build_objectives(alignment, num_layers(model, family))
    return Loaded(base, model, processor, family, objectives, metrics, samples, collator)


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of an evaluation config; their question files are read once here so that mistakes show early."""
    if not evaluation["metrics"]:
        return {}
    metrics = metrics_from_config(evaluation["root"], evaluation["metrics"])
    read_metric_questions(metrics, evaluation["limit"])
    return metrics


def _neighbours(values: Mapping[str, Any], samples: Sequence[Sample], watch: Stopwatch) -> Path:
    """The neighbours file, made from the corpus where it is missing or of something else."""
    data = values["data"]
    if data["neighbours"] is not None and data["captions"] is None:
        return Path(data["neighbours"])
    index_dir = Path(data["index_dir"]).absolute()
    out = Path(data["neighbours"]) if data["neighbours"] is not None else index_dir / "neighbours.parquet"
    captions = [data["captions"]] if isinstance(data["captions"], str) else data["captions"]
    choice, k = EncoderChoice(**values["encoder"]), data["neighbours_k"]
    with exclusive(index_dir):
        with watch.stage("index"):
            ensure_index([Path(path) for path in captions], index_dir, choice, **values["index"], k=k)
        with watch.stage("neighbours"):
            if (
                data["limit"] is not None
            ):  # a trial run must not leave the neighbours of a few samples in the place of all
                samples = read_samples({**data, "limit": None})
            ensure_neighbours(index_dir, samples, out, choice, k=k, batch_size=values["index"]["batch_size"])
    return out


def resume_command(run_dir: Path) -> str:
    """The command line that continues this run."""
    overrides = [
        override
        for override in HydraConfig.get().overrides.task
        if not override.lstrip("+").startswith(("run_dir=", "ckpt_path="))
    ]
    return shlex.join(["tga-train", *overrides, f"run_dir={run_dir}", "ckpt_path=last"])


def _hyper_parameters(config: DictConfig, values: Mapping[str, Any], base: BaseModel) -> dict[str, Any]:
    """What a checkpoint says of its run: plain values only."""
    return {
        "base_model": base.located(),
        "method": values["alignment"]["name"],
        "alignment": {key: value for key, value in values["alignment"].items() if key != "objectives"},
        "training": values["training"],
        "template": values["data"]["template"],
        "config_hash": config_hash(config),
    }


def _training_summary(result: FitResult, values: Mapping[str, Any]) -> dict[str, Any]:
    norm = result.guide_gradient_norm
    return {
        "method": values["alignment"]["name"],
        "seed": values["seed"],
        "steps": result.steps,
        "samples": result.samples,
        "train_s": round(result.train_s, 3),
        "samples_per_s": round(result.samples_per_s, 3),
        "guide_gradient_norm": None if math.isnan(norm) else norm,
        "trainable_parameters": result.trainable_parameters,
        **result.losses,
        **result.figures,
    }


def _evaluate(loaded: Loaded, evaluation: Mapping[str, Any], run_dir: Path, device: torch.device) -> dict[str, float]:
    if not loaded.metrics:
        return {}
    # One dtype throughout, as in the exported model: in training what trains was float32, under autocast.
    frozen = component(loaded.model, loaded.family.embed_tokens)
    loaded.model.to(device=device, dtype=next(frozen.parameters()).dtype).eval()
    options = {key: value for key, value in evaluation.items() if key not in NOT_ASKED}
    name = run_dir.name
    with torch.inference_mode():
        return evaluate(
            loaded.model, loaded.processor, loaded.family, loaded.metrics, out_dir=run_dir, model_name=name, **options
        )


def _export(result: FitResult, values: Mapping[str, Any], run_dir: Path, measured: Mapping[str, Any]) -> Path | None:
    if values["export"] is None:
        return None
    source = source_from_checkpoint(result.checkpoint, dtype=None)
    card = card_of(source, name=f"{values['name']}: {values['alignment']['name']}", figures=measured)
    return export_source(source, run_dir / values["export"], card, format=values["export"])


def _print_outcome(
    summary: Mapping[str, Any],
    measured: Mapping[str, Any],
    result: FitResult,
    exported: Path | None,
    run_dir: Path,
) -> None:
    """The short table: rates with their intervals, then times, then where things are."""
    console = Console()
    table = Table(title=f"{summary['method']}, seed {summary['seed']}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for key, value in measured.items():
        if f"{key}_low" in measured:
            table.add_row(key, f"{value:.3f}", f"{measured[f'{key}_low']:.3f} - {measured[f'{key}_high']:.3f}")
    for key in ("steps", "samples_per_s", "guide_gradient_norm", "train_s", "total_s", "peak_rss_mib"):
        if summary.get(key) is not None:
            table.add_row(key, f"{summary[key]:.4g}" if isinstance(summary[key], float) else str(summary[key]), "")
    console.print(table)
    places = {"checkpoint": result.checkpoint, "export": exported, "answers": run_dir / "answers.jsonl"}
    places |= {"metrics": run_dir / "metrics.jsonl", "summary": run_dir / "summary.json"}
    for name, path in places.items():
        if path is not None and path.exists():
            console.print(f"{name:<11}{path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
