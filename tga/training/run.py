"""One training run, from a loaded model and a list of samples to a checkpoint: `fit`.

Everything that can be wrong with settings, samples or a checkpoint is found before the first step.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from torch import Tensor, nn

from tga.alignment.objective import Objective
from tga.data.collate import Collator
from tga.data.datamodule import SampleData
from tga.data.sample import Sample
from tga.errors import UserError
from tga.training.callbacks import MetricsFile, ProgressBar, Throughput, parts_table, read_metrics
from tga.training.centre import caption_centre, with_centre
from tga.training.checkpoint import read_checkpoint, trainable_parameters
from tga.training.module import AlignmentModule
from tga.training.resume import checkpoint_to_continue, refuse_other_run, run_description
from tga.training.saving import SaveCheckpoints
from tga.training.settings import Calibration, FitResult, TrainSettings
from tga.training.stage import refuse_wrong_stage
from tga.vlm.families import Family, component
from tga.vlm.freezing import freeze, parameter_table
from tga.vlm.projector_init import calibrate_projector


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
) -> FitResult:
    """Train `train` parts of the model and leave `run_dir/checkpoints/step-*.ckpt` and `run_dir/metrics.jsonl`.

    Args:
        objectives: beside the LM loss, without a centre; `centred` gives them one, the mean over captions of the
            samples.
        hyper_parameters: plain values for the checkpoint; must hold `base_model`. A run that continues has the same.
        ckpt_path: None, "last" (of this run directory) or a file to continue from.

    Raises:
        UserError: see the modules that do the work; a checkpoint that does not fit, or a loss that is not finite.
    """
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    hyper_parameters = run_description(hyper_parameters, settings, len(samples))
    resume_from = checkpoint_to_continue(ckpt_path, run_dir)
    if resume_from is not None:
        refuse_other_run(resume_from, hyper_parameters)
    _prepare_model(model, family, settings, train)
    refuse_wrong_stage(model, family, objectives)
    console.print(parts_table(parameter_table(model, family)))
    data = _data(samples, collator, settings)
    collator([samples[0]])  # a sample that cannot be put together says so before the model moves
    throughput = Throughput()
    with _quiet_trainer():
        trainer = _trainer(settings, throughput, run_dir, data, console)
    device = trainer.strategy.root_device
    model.to(device)
    if calibration is not None and resume_from is None:
        _calibrate(model, family, collator, samples, calibration, settings.seed, device)
    centre = None
    if centred:
        centre = _centre(model, family, collator, samples, objectives, settings, resume_from, device, console)
        objectives = with_centre(objectives, centre.to(device), _union(objectives))
    module = _module(model, family, objectives, settings, data, centre, hyper_parameters)
    with _quiet_trainer():
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    return _result(module, trainer, throughput, run_dir, resume_from, device)


@contextmanager
def _quiet_trainer() -> Iterator[None]:
    """Leave out what the trainer says of itself: its tips, and warnings about choices made on purpose."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Frozen parts are in eval mode on purpose; how many workers a machine should have is the user's choice.
            warnings.filterwarnings("ignore", message=".*eval mode.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory.*")
            yield
    finally:
        logger.setLevel(level)


def _prepare_model(model: Any, family: Family, settings: TrainSettings, train: Sequence[str]) -> None:
    """Freeze, keep what trains in float32, and switch gradient checkpointing on where asked."""
    freeze(model, family, train)
    if settings.precision == "32-true" and any(p.dtype != torch.float32 for p in model.parameters()):
        raise UserError(
            "A model in half precision cannot train in precision 32-true",
            given=f"model.dtype={str(model.dtype).removeprefix('torch.')}",
            remedy="training.precision=bf16-mixed, or model.dtype=float32",
        )
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.float()
    if settings.gradient_checkpointing:
        # 5.23 warns that this name goes in version 6; its successor, activation_checkpointing_enable, is not in 5.0.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Checkpointing is active in train mode only; without dropout that mode computes the same.
        language_model = component(model, family.language_model).train()
        if any(isinstance(module, nn.Dropout) and module.p for module in language_model.modules()):
            remedy = "training.gradient_checkpointing=false, or set the dropout in the model's config.json to 0"
            raise UserError("Gradient checkpointing needs a language model without dropout", remedy=remedy)


def _data(samples: Sequence[Sample], collator: Collator, settings: TrainSettings) -> SampleData:
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
        num_workers=settings.num_workers,
        pin_memory=torch.cuda.is_available() and settings.accelerator != "cpu",
    )


def _total_steps(data: SampleData, settings: TrainSettings) -> int:
    return math.ceil(data.total_batches / settings.accumulate_batches)


def _trainer(
    settings: TrainSettings, throughput: Throughput, run_dir: Path, data: SampleData, console: Console
) -> lightning.Trainer:
    """A trainer of one device whose single "epoch" is the whole run: see `tga.data.datamodule`."""
    callbacks = [
        throughput,
        MetricsFile(run_dir / "metrics.jsonl", throughput, every=settings.log_every),
        ProgressBar(throughput, _total_steps(data, settings), console=console),
        SaveCheckpoints(run_dir / "checkpoints", every_steps=settings.save_every, keep=settings.keep_checkpoints),
    ]
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=1,
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=settings.accumulate_batches,
        gradient_clip_val=settings.gradient_clip_norm,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )


def _calibrate(
    model: Any,
    family: Family,
    collator: Collator,
    samples: Sequence[Sample],
    calibration: Calibration,
    seed: int,
    device: torch.device,
) -> None:
    """Start the projector from the statistics of a seeded draw of training pictures."""
    with_image = [sample for sample in samples if sample.images]
    order = torch.randperm(len(with_image), generator=torch.Generator().manual_seed(seed))
    drawn = [with_image[index] for index in order[: calibration.images].tolist()]
    if not drawn:
        raise UserError("There are no pictures to calibrate the projector on", remedy="model.calibration=null")
    pixels = collator.pictures(drawn).to(device=device, dtype=model.dtype)
    calibrate_projector(model, family, pixels, eps=calibration.eps, output_std_ratio=calibration.output_std_ratio)


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
    hyper_parameters: Mapping[str, Any],
) -> AlignmentModule:
    total = _total_steps(data, settings)
    return AlignmentModule(
        model,
        family,
        objectives,
        learning_rate=settings.learning_rate,
        projector_learning_rate=settings.projector_learning_rate,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        warmup_steps=math.ceil(settings.warmup_ratio * total),
        min_lr_ratio=settings.min_lr_ratio,
        total_steps=total,
        lm_weight=settings.lm_weight,
        centre=centre,
        gradient_norm_every=settings.gradient_norm_every,
        hyper_parameters=hyper_parameters,
    )


def _result(
    module: AlignmentModule,
    trainer: lightning.Trainer,
    throughput: Throughput,
    run_dir: Path,
    resume_from: Path | None,
    device: torch.device,
) -> FitResult:
    """What came out; the checkpoint is the one that this run wrote, or went on from where nothing was left to do."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    last = rows[-1] if rows else {}
    written = next(callback.written for callback in trainer.callbacks if isinstance(callback, SaveCheckpoints))  # type: ignore[attr-defined]
    checkpoint = written or resume_from
    assert checkpoint is not None  # a run that continues nothing has steps, and saves at the last one
    return FitResult(
        checkpoint=checkpoint,
        steps=trainer.global_step,
        samples=throughput.samples,
        train_s=throughput.seconds,
        samples_per_s=throughput.samples_per_s,
        guide_gradient_norm=float(last.get("guide_gradient_norm", math.nan)),
        losses={name: value for name, value in last.items() if name.startswith("loss")},
        figures={name: last[name] for name in module.figure_names if name in last},
        trainable_parameters=sum(p.numel() for p in trainable_parameters(module.model).values()),
        device=device,
    )
