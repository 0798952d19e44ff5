"""Whether a run may begin where it shall begin: a directory of its own, or a checkpoint of this very run.

A checkpoint says with which settings it was made. Continuing with others would train something that neither of both
describes (the schedule, the optimiser's state and the data order belong to the settings), so every difference is
refused, all at once, but for those that only decide how the work is done. That holds for the length of the run too: the
learning rate of every step so far followed from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tga.alignment.token_weights import token_weights_fingerprint
from tga.errors import UserError
from tga.run_files import checkpoints_in
from tga.training.checkpoint import FROZEN, TOKEN_WEIGHTS, latest_checkpoint, read_checkpoint
from tga.training.settings import TrainSettings

# How often something is written or measured, and how the same sums are computed: a run may change them half way.
FREE = (
    "training.save_every", "training.keep_checkpoints", "training.log_every", "training.gradient_norm_every",
    "training.num_workers", "training.loggers", "training.accelerator", "training.gradient_checkpointing",
    "config_hash",
    FROZEN,  # compared with the model itself, by require_same_frozen
    TOKEN_WEIGHTS,  # known when the captions have been counted, and has a message of its own
)  # fmt: skip
ABSENT = "not set"


def checkpoint_to_continue(ckpt_path: str | None, run_dir: Path) -> Path | None:
    """The checkpoint file to continue from; None for a new run.

    Args:
        ckpt_path: None, "last" (of the run directory) or a file.
        run_dir: where the run will write.

    Raises:
        UserError: the file is not there or no checkpoint, or the run directory holds checkpoints that the run would mix
            its own with: those of another run, or later ones than that to continue from.
    """
    held = checkpoints_in(run_dir / "checkpoints")
    if ckpt_path is None:
        if held:
            raise UserError(
                "The run directory holds the checkpoints of another run",
                given=held[-1],
                allowed="a new run directory, or continuing that run",
                remedy="run_dir=ANOTHER_DIRECTORY, or ckpt_path=last",
            )
        return None
    path = latest_checkpoint(run_dir / "checkpoints") if ckpt_path == "last" else Path(ckpt_path)
    step = read_checkpoint(path).step
    later = [file for file in held if int(file.stem.removeprefix("step-")) > step]
    if later:
        raise UserError(
            f"Later checkpoints stand where this run would write, and it would continue from step {step}",
            given=f"{path}; {later[-1]}",
            allowed="the last checkpoint of the run directory, or any one with a new run directory",
            remedy="ckpt_path=last, or run_dir=ANOTHER_DIRECTORY, or move the later ones away",
        )
    if held and path.resolve().parent != held[-1].resolve().parent:
        raise UserError(
            "The run directory holds checkpoints, and the one to continue from is not among them",
            given=f"{path}; {held[-1]}",
            allowed="a checkpoint of the run directory, or any one with a new run directory",
            remedy="ckpt_path=last, or run_dir=ANOTHER_DIRECTORY",
        )
    return path


def run_description(hyper_parameters: Mapping[str, Any], settings: TrainSettings, samples: int) -> dict[str, Any]:
    """What a checkpoint says of its run: what the caller tells, the numbers of the run, and how many samples it has."""
    return {**hyper_parameters, "training": asdict(settings), "samples": samples}


def refuse_other_run(path: Path, description: Mapping[str, Any]) -> None:
    """Compare what a checkpoint says of its run with what is asked for now.

    Args:
        path: the checkpoint.
        description: from `run_description`, what the continued run would store.

    Raises:
        UserError: one message with every setting that differs, with both values; or the words of the captions weigh
            something else.
    """
    stored = read_checkpoint(path).hyper_parameters
    then, now = dict(_flat(stored)), dict(_flat(description))
    differing = [
        f"{name} was {then.get(name, ABSENT)} and is {now.get(name, ABSENT)}"
        for name in sorted(then.keys() | now.keys())
        if name not in FREE and then.get(name, ABSENT) != now.get(name, ABSENT)
    ]
    if differing:
        raise UserError(
            "The checkpoint belongs to a run with other settings",
            given=f"{path}: {'; '.join(differing)}",
            allowed="the settings of that run, its length included",
            remedy="resume with the settings of the checkpoint's run (config.yaml beside it), or start a new one: "
            "ckpt_path=null run_dir=ANOTHER_DIRECTORY",
        )
    if TOKEN_WEIGHTS in description:  # not yet, where only the settings are known
        _refuse_other_words(path, stored.get(TOKEN_WEIGHTS), description[TOKEN_WEIGHTS])


def refuse_deepspeed(strategy: str, path: Path) -> None:
    """UserError where a checkpoint of a run under DeepSpeed would be continued."""
    if strategy == "deepspeed":
        raise UserError(
            "A run under DeepSpeed cannot be continued: its checkpoints hold no optimiser state",
            given=path,
            remedy="training=fsdp2, whose runs can, or ckpt_path=null run_dir=ANOTHER_DIRECTORY",
        )


def described_token_weights(weights: Tensor | None) -> dict[str, str]:
    """What a description says of weights `[vocabulary]` of tokens; nothing where all weigh the same."""
    return {} if weights is None else {TOKEN_WEIGHTS: token_weights_fingerprint(weights)}


def _refuse_other_words(path: Path, then: str | None, now: str | None) -> None:
    if then != now:
        raise UserError(
            "The captions are not those that the checkpoint's run began with: their words weigh something else",
            given=f"{path}: weights {then} then, {now} now",
            allowed="the same captions and tokenizer",
            remedy="data.json=PATH of that run, or start a new one: ckpt_path=null run_dir=ANOTHER_DIRECTORY",
        )


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping by its dotted name; a tuple counts as the list that a checkpoint makes of it."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
