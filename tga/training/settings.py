"""The numbers of a training run, checked before any work; conf/training has the same names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tga.errors import UserError
from tga.training.distributed import SHARED_OUT

PRECISIONS = ("32-true", "bf16-mixed")
ACCELERATORS = ("auto", "cpu", "cuda")


def check_precision(precision: str, dtype: torch.dtype) -> None:
    """Raise UserError for parts of the model in a dtype that does not go with the precision of the training."""
    if precision == "32-true" and dtype != torch.float32:
        raise UserError(
            "A model in half precision cannot train in precision 32-true",
            given=f"model.dtype={str(dtype).removeprefix('torch.')}",
            remedy="training.precision=bf16-mixed, or model.dtype=float32",
        )


def divided_batch(
    global_batch_size: int | None, batch_size: int | None, accumulate_batches: int | None, processes: int
) -> tuple[int, int]:
    """Samples of one forward pass, and passes of one optimiser step, of each process.

    Args:
        global_batch_size: samples of one optimiser step in all processes together; None: what comes of the others.
        batch_size, accumulate_batches: None where `global_batch_size` decides; of both, one pass is made of a step.

    Raises:
        UserError: numbers that do not go together, or too few of them.
    """
    given = (
        f"training.global_batch_size={global_batch_size}, batch_size={batch_size}, "
        f"accumulate_batches={accumulate_batches}, {processes} {'process' if processes == 1 else 'processes'}"
    ).replace("None", "null")
    sizes = (global_batch_size, batch_size, accumulate_batches)
    if any(size is not None and size < 1 for size in sizes):
        remedy = "training.NAME=VALUE"
        raise UserError("Batches are made of samples", given=given, allowed="numbers from 1, or null", remedy=remedy)
    if global_batch_size is None:
        if batch_size is None or accumulate_batches is None:
            problem, remedy = "The size of a batch is not said", "training.batch_size=32 training.accumulate_batches=1"
            raise UserError(problem, given=given, remedy=f"{remedy}, or a global_batch_size")
        return batch_size, accumulate_batches
    if batch_size is None:
        accumulate_batches = 1 if accumulate_batches is None else accumulate_batches
        batch_size = global_batch_size // (accumulate_batches * processes)
    elif accumulate_batches is None:
        accumulate_batches = global_batch_size // (batch_size * processes)
    if batch_size * accumulate_batches * processes != global_batch_size or not batch_size:
        raise UserError(
            "The batches of all processes do not make the global batch",
            given=given,
            allowed="global_batch_size = batch_size x accumulate_batches x processes",
            remedy="training.batch_size=null (or training.accumulate_batches=null) takes what is left of a global "
            "batch that the others divide; training.global_batch_size=null what comes of the others",
        )
    return batch_size, accumulate_batches


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, in which precision, and what is kept.

    Attributes:
        batch_size: samples per forward; `accumulate_batches` of them make an optimiser step.
        projector_learning_rate: of the projector, None where it is that of the rest.
        max_steps: stop after so many optimiser steps (the schedule shrinks with it); None for all epochs.
        warmup_ratio: share of the steps in which the learning rate rises.
        strategy: "single", or for many processes "ddp", "fsdp2", "deepspeed", see `tga.training.distributed`.
        grouping: which samples share an optimiser step, see `tga.data.sampling`.
        loggers: beside metrics.jsonl: "tensorboard", "wandb".
        centre_captions: captions that the centre is the mean of, where an objective is centred.
        save_every, keep_checkpoints: optimiser steps between checkpoints (0: only at the end), and how many stay.
        log_every, gradient_norm_every: steps between rows of metrics.jsonl, and between gradient norms (0: never).
    """

    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 32
    accumulate_batches: int = 1
    learning_rate: float = 1e-3
    projector_learning_rate: float | None = None
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.0
    gradient_clip_norm: float | None = None
    lm_weight: float = 1.0
    precision: str = "32-true"
    gradient_checkpointing: bool = False
    liger_kernel: bool = False
    accelerator: str = "auto"
    strategy: str = "single"
    num_workers: int = 0
    grouping: str = "none"
    seed: int = 0
    centre_captions: int = 2048
    save_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    gradient_norm_every: int = 100
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "loggers", tuple(self.loggers))
        if self.precision not in PRECISIONS:
            allowed = ", ".join(PRECISIONS)
            raise UserError("Unknown precision", given=self.precision, allowed=allowed, remedy="training.precision=...")
        positive: dict[str, Any] = {
            "epochs": self.epochs, "batch_size": self.batch_size, "accumulate_batches": self.accumulate_batches,
            "learning_rate": self.learning_rate,
            "projector_learning_rate": 1 if self.projector_learning_rate is None else self.projector_learning_rate,
            "log_every": self.log_every, "keep_checkpoints": self.keep_checkpoints,
            "centre_captions": self.centre_captions, "max_steps": 1 if self.max_steps is None else self.max_steps,
        }  # fmt: skip
        wrong = [f"{name}={value}" for name, value in positive.items() if value <= 0]
        wrong += [f"warmup_ratio={self.warmup_ratio}"] if not 0 <= self.warmup_ratio < 1 else []
        if self.strategy in SHARED_OUT and self.gradient_norm_every:
            raise UserError(
                "The norm of the guide gradient cannot be measured where weights are shared out",
                given=f"training.strategy={self.strategy}, gradient_norm_every={self.gradient_norm_every}",
                remedy="training.gradient_norm_every=0",
            )
        if wrong:
            allowed = "positive numbers, warmup_ratio in [0, 1)"
            raise UserError(
                "Training settings out of range", given=wrong, allowed=allowed, remedy="training.NAME=VALUE"
            )


@dataclass(frozen=True)
class Calibration:
    """A data-dependent start of the projector, see `tga.vlm.projector_init`; `images` training pictures decide it."""

    eps: float
    output_std_ratio: float
    images: int = 512


@dataclass(frozen=True)
class FitResult:
    """What a finished training leaves and how it went.

    Attributes:
        steps: optimiser steps of the whole run; `samples` (of all processes) and `train_s` are those since it was
            started or resumed.
        tokens_per_s: of all processes, image tokens included, padding left out.
        features_s: seconds in which the vision tower ran over all pictures before `train_s`, None where each step does.
        data_wait_share: of the time, spent waiting for batches.
        model_flop_utilisation: arithmetic that the model needs over what the device can do, see
            `tga.training.throughput`.
        peak_device_mib: memory held by tensors at most, None on a CPU.
        guide_gradient_norm: the objectives' gradient with respect to what trains, at the last measurement; NaN
            without objectives.
        losses: the terms of the last step.
        figures: what the objectives logged beside their terms at the last step.
        device: where the training ran; the trainer has moved the model back to the CPU since.
    """

    checkpoint: Path
    steps: int
    samples: int
    features_s: float | None
    train_s: float
    samples_per_s: float
    tokens_per_s: float
    data_wait_share: float
    model_flop_utilisation: float
    peak_device_mib: float | None
    guide_gradient_norm: float
    losses: dict[str, float]
    figures: dict[str, float]
    trainable_parameters: int
    device: torch.device
