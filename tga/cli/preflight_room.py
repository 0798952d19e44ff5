"""Memory and disk that a run would take, against what there is: estimates from an outline of the model."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch

from tga.alignment.text_targets import DTYPES as TARGET_DTYPES
from tga.alignment.text_targets import human_size
from tga.cli.checks import Finding, nearest_existing
from tga.cli.train_config import DTYPES
from tga.errors import UserError
from tga.training.distributed import SHARED_OUT
from tga.training.memory import estimate_memory
from tga.training.settings import TrainSettings
from tga.vlm.families import Family

CHECKPOINT_BYTES = 12  # of each trained parameter: its float32 value and AdamW's two moments


def memory_of_a_step(
    model: Any, family: Family, settings: TrainSettings, prompt: tuple[int, int], kept_layers: int, processes: int
) -> Finding:
    """An estimate against the device: a problem where the weights alone do not fit, a warning where a step may not.

    Args:
        model: an outline, frozen and with its adapters.
        prompt: tokens, and label tokens, of a typical prompt.
        kept_layers: decoder layers whose states the objectives keep.
        processes: of the run.
    """
    tokens, labels = prompt
    estimate = estimate_memory(
        model,
        family,
        batch_size=settings.batch_size,
        tokens=tokens,
        label_tokens=labels,
        kept_layers=kept_layers,
        half=settings.precision != "32-true",
        checkpointing=settings.gradient_checkpointing,
        shares=processes if settings.strategy in SHARED_OUT else 1,
        shared_weights=settings.strategy == "fsdp2",
    )
    name, available = device(settings.accelerator)
    step = f"about {estimate.describe()} for {settings.batch_size} prompts of {tokens} tokens"
    found = f"{step}; {name} has {human_size(available)}"
    if estimate.certain > available:
        problem = UserError(
            "The weights and what training adds to them do not fit on the device",
            given=found,
            remedy="model.dtype=bfloat16, model.lora={rank: 128}, training=fsdp2 on several devices, or fewer parts in "
            "model.train=[projector]",
        )
        return Finding("memory of a step", found, problem=problem)
    if estimate.total > available:
        less = (
            "smaller training.batch_size, larger training.accumulate_batches, or training.gradient_checkpointing=true"
        )
        return Finding("memory of a step", found, warning=f"A step may not fit on the device: {found}. Try a {less}")
    return Finding("memory of a step", found)


def disks(
    values: Mapping[str, Any], settings: TrainSettings, model: Any, state_width: int, samples: Sized | None
) -> Iterator[Finding]:
    """What the run writes to each disk, against its free room.

    Args:
        state_width: numbers of one stored text target: aligned layers times the width of a state.
    """
    by_disk: dict[int, list[tuple[str, Path, int]]] = defaultdict(list)
    for name, path, size in _written(values, settings, model, state_width, samples):
        there = nearest_existing(path)
        by_disk[there.stat().st_dev].append((name, there, size))
    for entries in by_disk.values():
        there, free = entries[0][1], shutil.disk_usage(entries[0][1]).free
        listed = ", ".join(f"{name} {human_size(size)}" for name, _, size in entries)
        problem = None
        if sum(size for _, _, size in entries) > free:
            remedy = "run_dir=ELSEWHERE, training.keep_checkpoints=1, export=null, or alignment.targets_dtype=bfloat16"
            problem = UserError(
                "The disk has no room for what the run writes",
                given=f"{there}: {listed}",
                allowed=f"{human_size(free)} free",
                remedy=remedy,
            )
        yield Finding(f"disk of {there}", f"{listed}; {human_size(free)} free", problem=problem)


def _written(
    values: Mapping[str, Any], settings: TrainSettings, model: Any, state_width: int, samples: Sized | None
) -> Iterator[tuple[str, Path, int]]:
    """Name, place and bytes of each thing that the run writes."""
    run_dir, alignment = Path(values["run_dir"]).absolute(), values["alignment"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    yield "checkpoints", run_dir, (settings.keep_checkpoints + 1) * CHECKPOINT_BYTES * trained
    if values["export"] == "hf":
        itemsize = DTYPES.get(values["model"]["dtype"], torch.float32).itemsize
        yield "export", run_dir, itemsize * sum(p.numel() for p in model.parameters())
    directory = values["data"]["targets_dir"]
    if alignment.get("targets") == "stored" and directory is not None and samples is not None:
        texts = len(samples) * (2 if alignment["retrieved"] == "loss" else 1)
        itemsize = TARGET_DTYPES.get(alignment["targets_dtype"], torch.float32).itemsize
        yield "text targets at most", Path(directory).absolute(), texts * state_width * itemsize


def device(accelerator: str) -> tuple[str, int]:
    """Name and memory in bytes of what a run with this accelerator would train on."""
    if accelerator != "cpu" and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return str(found.name), int(found.total_memory)
    return "this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
