"""Checkpoints that hold what was trained, and name what was not.

A checkpoint is Lightning's (optimiser, scheduler, loops, data position, random states) with two differences: its
`state_dict` has the trainable parameters only (and the centre of the cosines, where one is used), and
`hyper_parameters` is a plain dict that names the base model. So it loads with `weights_only=True` anywhere. Loading
is strict both ways.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tga.errors import UserError
from tga.run_files import checkpoints_in
from tga.training.base_model import BaseModel
from tga.training.lora import LoraSettings, add_lora, merge_lora
from tga.vlm.families import FAMILIES, family_of
from tga.vlm.fingerprint import same_weights, short_name, weights_sample

MODEL_PREFIX = "model."  # the attribute of the LightningModule under which the VLM stands
PROJECTORS = tuple(f"{family.projector}." for family in FAMILIES)
FROZEN = "frozen_weights"  # in hyper_parameters: which weights stood beside those that were trained
TOKEN_WEIGHTS = "token_weights"  # the key of the fingerprint of what the tokens of texts weigh; none of plain means
NAMED = 4
NAME_ONE = "name a .ckpt file of a run's checkpoints folder"


@dataclass(frozen=True)
class TrainedWeights:
    """What a checkpoint says.

    Attributes:
        path: the file.
        base: the model that the weights belong to.
        weights: the trained parameters by their name in the VLM (`model.multi_modal_projector.linear_1.weight`, ...).
        centre: `[layers, width]` subtracted before the cosines, or None.
        step: optimiser steps done.
        hyper_parameters: the plain dict stored, `base_model` included.
    """

    path: Path
    base: BaseModel
    weights: dict[str, Tensor]
    centre: Tensor | None
    step: int
    hyper_parameters: dict[str, Any]


def read_checkpoint(path: Path) -> TrainedWeights:
    """Read a training checkpoint on the CPU.

    Raises:
        UserError: no such file, or not a checkpoint of `tga-train`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("There is no checkpoint here", given=path, remedy=NAME_ONE)
    if not zipfile.is_zipfile(path):  # what torch.save writes; loading anything else fails in many ways
        raise UserError("This is not a checkpoint of tga-train", given=path, remedy=NAME_ONE)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        hyper_parameters = dict(content["hyper_parameters"])
        base = BaseModel(**hyper_parameters["base_model"])
    except (pickle.UnpicklingError, KeyError, TypeError, RuntimeError, EOFError) as error:
        raise UserError(f"This is not a checkpoint of tga-train ({error})", given=path, remedy=NAME_ONE) from error
    state = content["state_dict"]
    weights = {key.removeprefix(MODEL_PREFIX): value for key, value in state.items() if key.startswith(MODEL_PREFIX)}
    return TrainedWeights(path, base, weights, state.get("centre"), int(content["global_step"]), hyper_parameters)


def restore_model(trained: TrainedWeights, *, dtype: torch.dtype | None, attn_implementation: str) -> tuple[Any, Any]:
    """The VLM of a checkpoint, in eval mode, with its processor: the base model with the trained weights put in.

    dtype: None takes the dtype in which the base model is stored.

    Raises:
        UserError: the base model is no longer where the checkpoint says, is another one by now, or the weights do not
            fit it.
    """
    base = trained.base
    if any(name.startswith(PROJECTORS) for name in trained.weights):
        base = replace(base, projector=None)  # the one it started from is not needed any more
    try:
        model, processor = base.load(dtype=dtype, attn_implementation=attn_implementation)
    except UserError as error:
        remedy = "put the base model back where the checkpoint names it, or train again from where it is now"
        problem = f"The base model of the checkpoint {trained.path} cannot be loaded ({error.problem})"
        raise UserError(problem, given=error.given, allowed=error.allowed, remedy=remedy) from error
    require_same_frozen(trained, model)
    lora = trained.hyper_parameters.get("lora")
    if lora is None:
        put_weights(model, trained.weights, source=str(trained.path))
    else:
        with torch.random.fork_rng(devices=[]):
            add_lora(model, family_of(model), LoraSettings(**lora))
        put_weights(model, trained.weights, source=str(trained.path))
        merge_lora(model, family_of(model))
    return model.eval(), processor


def frozen_sample(model: Any, trained: Collection[str]) -> str:
    """Which weights a model has beside the parameters named in `trained`, as text; no adapters have been added to it.

    Embeddings and head do not count: the rows that are added to them for the image token depend on the dtype.
    """
    vocabulary = {
        id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module
    }
    return weights_sample(
        (name, value) for name, value in model.named_parameters() if name not in trained and id(value) not in vocabulary
    )


def require_same_frozen(trained: TrainedWeights, model: Any) -> None:
    """Compare the weights beside the trained ones with those that stood there in training, where the checkpoint says.

    A path names the base model, and what stands there may have been replaced by a model of the same shapes.

    Raises:
        UserError: they are others.
    """
    then = trained.hyper_parameters.get(FROZEN)
    if then is None or ":" not in then:  # checkpoints of before do not say, or not in a way that holds for every dtype
        return
    now = frozen_sample(model, trained.weights)
    if same_weights(then, now):
        return
    base = trained.base
    raise UserError(
        "The base model of the checkpoint has been replaced: its weights are not those that it was trained beside",
        given=f"{trained.path}: weights {short_name(then)} in training, {short_name(now)} now, "
        f"at {base.vlm or base.llm} and beside it",
        allowed="the model of the training, in any dtype",
        remedy="put that model back where the checkpoint names it, or train again with the one that is there",
    )


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy named weights into the model, cast to its dtype; every name must exist with the same shape.

    Raises:
        UserError: see :func:`require_same`.
    """
    parameters = dict(model.named_parameters())
    expected = {name: parameters[name] for name in weights if name in parameters}
    require_same(weights, expected, source=source)
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    """Compare names and shapes before anything is loaded.

    Raises:
        UserError: a message that names both sides: what only the checkpoint has, what only the model has, and shapes
            that differ.
    """
    problems = []
    if extra := sorted(set(found) - set(expected)):
        problems.append(f"only the checkpoint has {_some(extra)}")
    if missing := sorted(set(expected) - set(found)):
        problems.append(f"only the model has {_some(missing)}")
    differing = [
        f"{name} is {list(found[name].shape)} in the checkpoint and {list(expected[name].shape)} in the model"
        for name in sorted(set(found) & set(expected))
        if found[name].shape != expected[name].shape
    ]
    problems.extend(differing[:NAMED])
    if problems:
        remedy = "use the model that the checkpoint names (its base_model), or another checkpoint"
        raise UserError(f"The checkpoint does not fit the model: {'; '.join(problems)}", given=source, remedy=remedy)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def latest_checkpoint(directory: Path) -> Path:
    """The checkpoint of the most steps in a run's `checkpoints` folder.

    Raises:
        UserError: there is none.
    """
    found = checkpoints_in(directory)
    if not found:
        remedy = "run_dir=DIRECTORY of a run, or one of its .ckpt files; a new training begins with ckpt_path=null"
        raise UserError("There is no checkpoint here", given=directory, allowed="step-*.ckpt", remedy=remedy)
    return found[-1]


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
