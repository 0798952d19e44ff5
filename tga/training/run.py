"""One training run, from a loaded model and a list of samples to a checkpoint: `fit`.

Everything that can be wrong with settings, samples or a checkpoint is found before the first step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from torch import Tensor

from tga.alignment.objective import Objective
from tga.data.collate import Collator
from tga.data.datamodule import SampleData
from tga.data.sample import Sample
from tga.errors import UserError
from tga.training.calibration import calibrate_on_samples
from tga.training.callbacks import MetricsFile, ProgressBar, parts_table, read_metrics
from tga.training.centre import caption_centre, with_centre
from tga.training.checkpoint import (
    FROZEN,
    frozen_sample,
    read_checkpoint,
    require_same,
    require_same_frozen,
    trainable_parameters,
)
from tga.training.distributed import SHARED_OUT, Processes, agree_on, total
from tga.training.guard import FiniteGradients
from tga.training.lora import LoraSettings
from tga.training.module import AlignmentModule
from tga.training.prepare import active_checkpointing, prepare_model
from tga.training.resume import (
    checkpoint_to_continue,
    described_token_weights,
    refuse_deepspeed,
    refuse_other_run,
    run_description,
)
from tga.training.saving import SaveCheckpoints
from tga.training.settings import Calibration, FitResult, TrainSettings
from tga.training.stage import refuse_wrong_stage
from tga.training.stored_features import StoredFeatures, tower_left_out
from tga.training.throughput import ModelFlops, Throughput, matmul_flops_per_s, model_flops, peak_device_mib
from tga.training.trainer import build_trainer, quiet_trainer
from tga.vlm.families import Family
from tga.vlm.freezing import freeze, parameter_table

ALONE = Processes()


def fit(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    objectives: Sequence[Objective],
    settings: TrainSettings,
    run_dir: Path,
    *,
    train: Sequence[str],
    centred: bool,
    calibration: Calibration | None,
    hyper_parameters: Mapping[str, Any],
    ckpt_path: str | None,
    console: Console,
    lora: LoraSettings | None = None,
    processes: Processes = ALONE,
    stored_features: bool = False,
) -> FitResult:
    """Train `train` parts of the model and leave `run_dir/checkpoints/step-*.ckpt` and `run_dir/metrics.jsonl`.

    Args:
        objectives: beside the LM loss, without a centre; `centred` gives them one, the mean over captions of the
            samples.
        hyper_parameters: plain values for the checkpoint; must hold `base_model`. A run that continues has the same.
        ckpt_path: None, "last" (of this run directory) or a file to continue from.
        lora: adapters that train beside `train`, which does not hold the language model then.
        processes: which of how many this is; all call this function with the same arguments.
        stored_features: run the vision tower once over each picture, before the first step, and leave it out after.

    Raises:
        UserError: see the modules that do the work; a checkpoint that does not fit, or a loss that is not finite.
    """
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    freeze(model, family, train)
    trained = trainable_parameters(model)  # before adapters, which give other parameters other names
    hyper_parameters = run_description(hyper_parameters, settings, len(samples))
    hyper_parameters |= {FROZEN: frozen_sample(model, trained), **described_token_weights(collator.token_weights)}
    resume_from = checkpoint_to_continue(ckpt_path, run_dir)
    if resume_from is not None:
        refuse_deepspeed(settings.strategy, resume_from)
        refuse_other_run(resume_from, hyper_parameters)
        require_same_frozen(read_checkpoint(resume_from), model)
    prepare_model(model, family, settings, train, lora)
    if resume_from is not None:
        require_same(read_checkpoint(resume_from).weights, trainable_parameters(model), source=str(resume_from))
    refuse_wrong_stage(model, family, objectives)
    console.print(parts_table(parameter_table(model, family)))
    if settings.gradient_checkpointing:
        console.print("Gradient checkpointing: {} of {} decoder layers".format(*active_checkpointing(model, family)))
    collator = collator.with_fillers() if settings.strategy in SHARED_OUT else collator
    features = StoredFeatures(samples) if stored_features else None
    data = _data(samples, collator.with_features(features) if features else collator, settings, processes)
    collator([samples[0]])  # a sample that cannot be put together says so before the model moves
    callbacks = _callbacks(settings, throughput := Throughput(lambda: data.waited_s), run_dir, data, console)
    with quiet_trainer():
        used = set(train) == {"projector"}
        trainer = build_trainer(settings, processes, callbacks, run_dir, all_parameters_used=used)
    device = trainer.strategy.root_device
    model.to(device)
    if calibration is not None and resume_from is None:
        calibrate_on_samples(model, family, collator, samples, calibration, settings.seed, device)
    centre = None
    if centred:
        centre = _centre(model, family, collator, samples, objectives, settings, resume_from, device, console).to(
            device
        )
        agree_on([centre])
        objectives = with_centre(objectives, centre, _union(objectives))
    agree_on(list(trainable_parameters(model).values()))
    module = _module(model, family, objectives, settings, data, centre, collator.token_weights, hyper_parameters)
    flops = model_flops(model, family, tower_runs=features is None)  # before parameters are shared out
    with ExitStack() as stack:
        features_s = None
        if features is not None:
            features_s = _fill(features, model, family, collator, settings, processes)
            stack.enter_context(tower_left_out(model, family))
        stack.enter_context(quiet_trainer())
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    return _result(module, trainer, throughput, flops, run_dir, resume_from, device, features_s)


def _fill(features: StoredFeatures, model: Any, family: Family, collator: Collator, *rest: Any) -> float:
    """Run the tower over all pictures; the seconds that it took. rest: the run's settings and processes."""
    settings, processes = rest
    started, quiet = time.perf_counter(), not processes.first
    here = processes.local_size
    features.fill(model, family, collator, precision=settings.precision, processes_here=here, quiet=quiet)
    return time.perf_counter() - started


def _data(samples: Sequence[Sample], collator: Collator, settings: TrainSettings, processes: Processes) -> SampleData:
    if not samples:
        raise UserError("There are no samples to train on", remedy="data.json=PATH")
    limit = settings.max_steps * settings.accumulate_batches if settings.max_steps is not None else None
    return SampleData(
        samples,
        collator,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=settings.seed,
        max_batches=limit,
        num_workers=settings.num_workers if collator.features is None else 0,  # there is nothing to decode
        pin_memory=torch.cuda.is_available() and settings.accelerator != "cpu",
        grouping=settings.grouping,
        batches_per_step=settings.accumulate_batches * processes.size,
        rank=processes.rank,
        world=processes.size,
    )


def _total_steps(data: SampleData, settings: TrainSettings) -> int:
    return math.ceil(data.total_batches / settings.accumulate_batches)


def _callbacks(
    settings: TrainSettings, throughput: Throughput, run_dir: Path, data: SampleData, console: Console
) -> list[lightning.Callback]:
    return [
        throughput,
        FiniteGradients(),
        MetricsFile(run_dir / "metrics.jsonl", throughput, every=settings.log_every),
        ProgressBar(throughput, _total_steps(data, settings), console=console),
        SaveCheckpoints(
            run_dir / "checkpoints",
            every_steps=settings.save_every,
            keep=settings.keep_checkpoints,
            weights_only=settings.strategy == "deepspeed",
        ),
    ]


def _union(objectives: Sequence[Objective]) -> tuple[int, ...]:
    return tuple(sorted({layer for objective in objectives for layer in objective.layers}))


def _centre(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    objectives: Sequence[Objective],
    settings: TrainSettings,
    resume_from: Path | None,
    device: torch.device,
    console: Console,
) -> Tensor:
    """The centre `[layers, width]` at the union of the objectives' layers; the checkpoint's own where one continues."""
    if resume_from is not None:
        kept = read_checkpoint(resume_from).centre
        if kept is None:
            remedy = "alignment.centred=false, or start a new run"
            raise UserError("The checkpoint comes from a run without a centre", given=resume_from, remedy=remedy)
        return kept
    captions = [sample.caption for sample in samples if sample.caption]
    return caption_centre(
        model,
        family,
        collator,
        captions,
        _union(objectives),
        count=settings.centre_captions,
        seed=settings.seed,
        device=device,
        console=console,
    )


def _module(
    model: Any,
    family: Family,
    objectives: Sequence[Objective],
    settings: TrainSettings,
    data: SampleData,
    centre: Tensor | None,
    token_weights: Tensor | None,
    hyper_parameters: Mapping[str, Any],
) -> AlignmentModule:
    steps = _total_steps(data, settings)
    return AlignmentModule(
        model,
        family,
        objectives,
        learning_rate=settings.learning_rate,
        projector_learning_rate=settings.projector_learning_rate,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        min_lr_ratio=settings.min_lr_ratio,
        total_steps=steps,
        lm_weight=settings.lm_weight,
        centre=centre,
        token_weights=token_weights,
        gradient_norm_every=settings.gradient_norm_every,
        hyper_parameters=hyper_parameters,
    )


def _result(
    module: AlignmentModule,
    trainer: lightning.Trainer,
    throughput: Throughput,
    flops: ModelFlops,
    run_dir: Path,
    resume_from: Path | None,
    device: torch.device,
    features_s: float | None,
) -> FitResult:
    """What came out; the checkpoint is the one that this run wrote, or went on from where nothing was left to do."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    last = rows[-1] if rows else {}
    written = next(callback.written for callback in trainer.callbacks if isinstance(callback, SaveCheckpoints))  # type: ignore[attr-defined]
    checkpoint = written or resume_from
    assert checkpoint is not None  # a run that continues nothing has steps, and saves at the last one
    samples, tokens = (total(value, device) for value in (throughput.samples, throughput.tokens))
    seconds = throughput.seconds
    dtype = torch.float32 if trainer.precision == "32-true" else torch.bfloat16
    needed = flops.of(throughput.counts) / seconds if seconds else 0.0
    return FitResult(
        checkpoint=checkpoint,
        steps=trainer.global_step,
        samples=int(samples),
        train_s=seconds,
        features_s=features_s,
        samples_per_s=samples / seconds if seconds else 0.0,
        tokens_per_s=tokens / seconds if seconds else 0.0,
        data_wait_share=throughput.data_wait_share,
        model_flop_utilisation=needed / matmul_flops_per_s(device, dtype) if seconds else 0.0,
        peak_device_mib=peak_device_mib(device),
        guide_gradient_norm=float(last.get("guide_gradient_norm", math.nan)),
        losses={name: value for name, value in last.items() if name.startswith("loss")},
        figures={name: last[name] for name in module.figure_names if name in last},
        trainable_parameters=sum(p.numel() for p in trainable_parameters(module.model).values()),
        device=device,
    )
