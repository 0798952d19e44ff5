"""The Lightning trainer of a run, and how much it says of itself."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from tga.errors import UserError
from tga.training.distributed import Processes, trainer_strategy
from tga.training.settings import TrainSettings

LOGGERS = ("tensorboard", "wandb")


def build_trainer(
    settings: TrainSettings,
    processes: Processes,
    callbacks: Sequence[lightning.Callback],
    run_dir: Path,
    *,
    all_parameters_used: bool,
) -> lightning.Trainer:
    """A trainer whose single "epoch" is the whole run: see `tga.data.sampling`.

    Raises:
        UserError: a logger or a strategy that is not installed.
    """
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=processes.local_size,
        num_nodes=processes.nodes,
        strategy=trainer_strategy(settings.strategy, processes, all_parameters_used=all_parameters_used),
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=settings.accumulate_batches,
        gradient_clip_val=settings.gradient_clip_norm,
        callbacks=list(callbacks),
        logger=_loggers(settings.loggers, run_dir) if processes.first else False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,  # nothing goes by it, and the trainer warns of its default in short runs
        use_distributed_sampler=False,
        default_root_dir=run_dir,
    )


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that does not exist or is not installed.

    Raises:
        UserError: naming it.
    """
    for name in names:
        if name not in LOGGERS:
            allowed = ", ".join(LOGGERS)
            raise UserError("Unknown logger", given=name, allowed=allowed, remedy="training.loggers=[...]")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"The logger {name} is not installed", remedy=f"pip install {name}, or training.loggers=[]")


def _loggers(names: Sequence[str], run_dir: Path) -> list[Logger]:
    """The loggers asked for, beside metrics.jsonl; they write into the run directory."""
    makers: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardLogger(run_dir, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(name=run_dir.name, save_dir=run_dir, project="tga"),
    }
    check_loggers(names)
    return [makers[name]() for name in names]


@contextmanager
def quiet_trainer() -> Iterator[None]:
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
