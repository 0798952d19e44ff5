"""tga-train: prepare, index, neighbours, training, evaluation, export, and a table of what came out.

What is there already is not made again. All that can be wrong with the config, the model, the data and the questions
is found before the index is built or a step is taken.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from tga.alignment.objective import Objective
from tga.cli.build_index import EncoderChoice, ensure_index, ensure_neighbours
from tga.cli.common import hydra_command, plain, prepare, start_run, write_summary
from tga.cli.data import read_samples
from tga.cli.half_precision import bfloat16_on_cpu
from tga.cli.locks import exclusive
from tga.cli.own_processes import own_processes, share_of_cores, with_own_processes
from tga.cli.preflight import require_ready, require_settings
from tga.cli.run_directory import export_directory, run_directory
from tga.cli.stopwatch import Stopwatch
from tga.cli.train_config import (
    BASE_FIELDS,
    DTYPES,
    build_objectives,
    check_located_layers,
    lora_settings,
    projector_calibration,
    train_settings,
    with_located_layers,
)
from tga.cli.train_description import hyper_parameters
from tga.cli.train_report import print_outcome, resume_command, training_summary
from tga.cli.train_targets import with_targets, with_text_pooling
from tga.cli.value_checks import refuse, value_problems
from tga.data.collate import Collator
from tga.data.loading import with_neighbours
from tga.data.noise import with_swapped_words
from tga.data.sample import Sample
from tga.evaluation.metrics import Metric, metrics_from_config, read_metric_questions, refuse_model_judges
from tga.evaluation.suite import evaluate
from tga.export.hf import refuse_foreign_directory
from tga.export.run import CHAT_TEMPLATES, card_of, export_source
from tga.export.source import source_from_checkpoint
from tga.resources import peak_rss_mib
from tga.terminal import literal_lines
from tga.training.base_model import BaseModel
from tga.training.callbacks import terminal
from tga.training.checkpoint import read_checkpoint, restore_model
from tga.training.distributed import (
    SHARED_OUT,
    Processes,
    agreed,
    check_processes,
    start_processes,
    stop_processes,
    total,
    wait_for_all,
)
from tga.training.resume import checkpoint_to_continue, refuse_other_run, run_description
from tga.training.run import fit
from tga.training.settings import FitResult
from tga.vlm.families import Family, component, family_of, num_layers
from tga.vlm.image_tokens import check_image_tokens

# Keys of an evaluation that say where its files are, not how they are asked.
NOT_ASKED = ("root", "metrics", "anchors", "choose_root", "judge_model")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What the config names, loaded and checked."""

    model: Any
    processor: Any
    family: Family
    objectives: list[Objective]
    metrics: dict[str, Metric]
    samples: Sequence[Sample]
    collator: Collator


@hydra_command("train", values_checked=False)
def main(config: DictConfig) -> Path | None:
    """Run all stages; returns the run directory, of many processes in the first one only."""
    training, sweep = plain(config)["training"], HydraConfig.get().mode == RunMode.MULTIRUN
    refuse(value_problems({"training": {"processes": training["processes"]}}))  # other values: with all that is wrong
    with own_processes(training, sweep=sweep):
        return _run(config, with_own_processes(training), sweep=sweep)


def _run(config: DictConfig, training: Mapping[str, Any], *, sweep: bool) -> Path | None:
    """Connect the processes, of which the first keeps the run directory; `training` with the strategy for them."""
    started = time.perf_counter()
    processes = check_processes(training["strategy"], sweep=sweep)
    console = terminal() if processes.first else Console(quiet=True)
    values = plain(config)
    if values["prepare"].get("world") is not None:
        require_settings(values)  # what it writes is not there yet: the rest can be looked at behind it only
    _say_slow_precision(values, console)
    start_processes(training["strategy"], training["accelerator"], sweep=sweep)
    config.run_dir = agreed(str(config.run_dir))  # its default is a time, which each process has its own of
    kept = processes.first and not Path(config.run_dir).is_file()  # a file is told with all else that is wrong
    with run_directory(config.run_dir) if kept else nullcontext():
        return _stages(config, training, processes, console, started)


def _stages(
    config: DictConfig, training: Mapping[str, Any], processes: Processes, console: Console, started: float
) -> Path | None:
    """All stages, in each process."""
    watch, values = Stopwatch(), plain(config)
    if processes.first and values["export"] is not None:
        refuse_foreign_directory(Path(values["run_dir"]) / values["export"])  # and not after the training
    with watch.stage("prepare"):
        if processes.local_rank == 0:
            prepare(config)
        wait_for_all()
    with watch.stage("load"):
        data = require_ready(values, lambda text: console.print(literal_lines(text), soft_wrap=True))
        settings = train_settings(training, processes.size)
        values["alignment"] = with_located_layers(values["alignment"])
        lora = lora_settings(values["model"]["lora"])
        base = BaseModel(**{name: values["model"][name] for name in BASE_FIELDS})
        described = hyper_parameters(config, values, base, lora)
        resume_from = checkpoint_to_continue(values["ckpt_path"], Path(values["run_dir"]))
        if resume_from is not None:
            refuse_other_run(resume_from, run_description(described, settings, len(data)))
        loaded = _load(values, base, data)
    samples = loaded.samples
    if values["alignment"]["retrieved"] != "none":
        found = _neighbours(values, samples, watch, processes)
        samples = with_neighbours(samples, found, used=values["data"]["neighbours_used"])
    samples = with_swapped_words(samples, values["data"]["swapped_words"], training["seed"])
    run_dir = start_run(config) if processes.first else Path(config.run_dir).absolute()
    go_on = resume_command(run_dir, processes)
    console.print(literal_lines(f"Run directory: {run_dir}\nIf it stops, continue with: {go_on}"), soft_wrap=True)
    with watch.stage("targets"):
        collator = _text_targets(loaded, samples, values, processes, console)
    with watch.stage("fit"), share_of_cores(processes.local_size, settings.accelerator):
        result = fit(
            loaded.model,
            loaded.family,
            collator,
            samples,
            loaded.objectives,
            settings,
            run_dir,
            train=values["model"]["train"],
            centred=values["alignment"]["centred"],
            calibration=projector_calibration(values["model"]["calibration"]),
            hyper_parameters=described,
            ckpt_path=values["ckpt_path"],
            console=console,
            lora=lora,
            processes=processes,
            stored_features=values["model"]["vision_features"] == "stored",
        )
    beside = total(peak_rss_mib(), result.device) - peak_rss_mib()  # memory of the other processes
    stop_processes()
    if not processes.first:
        return None
    if settings.strategy in SHARED_OUT:
        loaded = dataclasses.replace(loaded, model=_restored(result.checkpoint, values["model"]))
    with watch.stage("evaluate"):
        measured = _evaluate(loaded, values["evaluation"], run_dir, result.device)
    del loaded  # the export loads the checkpoint anew, which also proves that it holds everything
    summary = training_summary(result, values, processes) | measured | watch.seconds
    write_summary(run_dir, summary, config)  # so that a failing export loses no figure
    with watch.stage("export"):
        exported = _export(result, values, run_dir, measured)
    summary |= watch.seconds | {"total_s": round(time.perf_counter() - started, 3)}
    summary["peak_rss_mib"] = round(peak_rss_mib() + beside, 1)
    write_summary(run_dir, summary, config)
    print_outcome(summary, measured, result, exported, run_dir)
    return run_dir


def _say_slow_precision(values: Mapping[str, Any], console: Console) -> None:
    """One notice where the run would compute in bfloat16 on a CPU that is slow at it; no error, as it does compute."""
    found = None if console.quiet else bfloat16_on_cpu(values)
    if found is not None and found.warning is not None:
        console.print(literal_lines(f"Notice: {found.warning}"), soft_wrap=True)


def _load(values: Mapping[str, Any], base: BaseModel, samples: Sequence[Sample]) -> Loaded:
    """Load the model, read the questions, and check the config against them."""
    dtype, attention = DTYPES[values["model"]["dtype"]], values["model"]["attn_implementation"]
    data, alignment = values["data"], values["alignment"]
    metrics = _metrics(values["evaluation"])
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
    return Loaded(model, processor, family, objectives, metrics, samples, collator)


def _text_targets(
    loaded: Loaded, samples: Sequence[Sample], values: Mapping[str, Any], processes: Processes, console: Console
) -> Collator:
    """The collator with what the method wants of texts: weights of tokens, stored states."""
    model, family, objectives = loaded.model, loaded.family, loaded.objectives
    collator = with_text_pooling(
        model, family, loaded.collator, samples, objectives, values["alignment"], console=console
    )
    if processes.local_rank != 0:
        wait_for_all()  # what is stored one process of a machine stores, and the others read
    collator = with_targets(model, family, collator, samples, objectives, values, console=console)
    if processes.local_rank == 0:
        wait_for_all()
    return collator


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of an evaluation config; their question files are read once here so that mistakes show early."""
    if not evaluation["metrics"]:
        return {}
    metrics = metrics_from_config(evaluation["root"], evaluation["metrics"])
    refuse_model_judges(metrics)
    read_metric_questions(metrics, evaluation["limit"])
    return metrics


def _neighbours(values: Mapping[str, Any], samples: Sequence[Sample], watch: Stopwatch, processes: Processes) -> Path:
    """The neighbours file, made from the corpus where it is missing or of something else, by one process a machine."""
    data = values["data"]
    if data["neighbours"] is not None and data["captions"] is None:
        return Path(data["neighbours"])
    index_dir = Path(data["index_dir"]).absolute()
    out = Path(data["neighbours"]) if data["neighbours"] is not None else index_dir / "neighbours.parquet"
    captions = [data["captions"]] if isinstance(data["captions"], str) else data["captions"]
    choice, k = EncoderChoice(**values["encoder"]), data["neighbours_k"]
    if processes.local_rank == 0:
        with exclusive(index_dir):
            with watch.stage("index"):
                ensure_index([Path(path) for path in captions], index_dir, choice, **values["index"], k=k)
            with watch.stage("neighbours"):
                if data["limit"] is not None:  # a trial run must not leave the neighbours of a few samples for all
                    samples = read_samples({**data, "limit": None})
                ensure_neighbours(index_dir, samples, out, choice, k=k, batch_size=values["index"]["batch_size"])
    wait_for_all()
    return out


def _restored(checkpoint: Path, model: Mapping[str, Any]) -> Any:
    """The trained model as a whole, of which each process held a share."""
    dtype, attention = DTYPES[model["dtype"]], model["attn_implementation"]
    return restore_model(read_checkpoint(checkpoint), dtype=dtype, attn_implementation=attention)[0]


def _evaluate(loaded: Loaded, evaluation: Mapping[str, Any], run_dir: Path, device: torch.device) -> dict[str, float]:
    if not loaded.metrics:
        return {}
    # One dtype throughout, as in the exported model: in training what trains was float32, under autocast. Parameters
    # alone: the rotary frequencies are a buffer in float32, also of a model that is loaded in half precision.
    dtype = next(component(loaded.model, loaded.family.embed_tokens).parameters()).dtype
    for parameter in loaded.model.to(device).eval().parameters():
        parameter.data = parameter.data.to(dtype)
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
    # After a stage of captions the chat template is the one that the evaluation asks in.
    asked = values["evaluation"]["chat_template"]
    chat_template = asked if values["data"]["template"] == "plain" and asked in CHAT_TEMPLATES else None
    card = card_of(source, name=f"{values['name']}: {values['alignment']['name']}", figures=measured)
    format, verify = values["export"], values["verify"]
    with export_directory(run_dir / format, option="run_dir") as output:
        return export_source(source, output, card, format=format, chat_template=chat_template, verify=verify)


if __name__ == "__main__":
    main()
