"""What the settings of tga-train and its run directory show to be wrong by themselves: no data and no model is read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from tga.alignment.token_weights import MEAN, POOLINGS
from tga.cli.train_config import (
    BASE_FIELDS,
    DTYPES,
    lora_settings,
    projector_calibration,
    train_settings,
    with_located_layers,
)
from tga.cli.value_checks import value_problems
from tga.data.collate import RETRIEVED
from tga.data.noise import check_share
from tga.errors import UserError
from tga.evaluation.metrics import metrics_from_config
from tga.export.run import FORMATS
from tga.training.base_model import BaseModel
from tga.training.distributed import check_deepspeed, check_own_processes
from tga.training.resume import checkpoint_to_continue
from tga.training.settings import ACCELERATORS, check_precision
from tga.training.trainer import check_loggers
from tga.vlm.chat_templates import TEMPLATES
from tga.vlm.freezing import check_parts

ATTENTION = ("sdpa", "eager", "flash_attention_2")
TARGETS = ("online", "stored")


def setting_problems(values: Mapping[str, Any]) -> list[UserError]:
    """Every such mistake in the plain config of a run, values of the wrong kind first; none where it is empty."""
    model, alignment, evaluation = values["model"], values["alignment"], values["evaluation"]
    checks: list[Callable[[], object]] = [functools.partial(_check_option, *option) for option in _options(values)]
    checks += [
        lambda: train_settings(values["training"]),
        lambda: BaseModel(**{name: model[name] for name in BASE_FIELDS}),
        lambda: check_parts(model["train"]),
        lambda: projector_calibration(model["calibration"]),
        lambda: lora_settings(model["lora"]),
        lambda: check_precision(values["training"]["precision"], DTYPES.get(model["dtype"], torch.float32)),
        lambda: _check_device(values["training"]["accelerator"]),
        lambda: check_loggers(values["training"]["loggers"]),
        lambda: _check_strategy(values["training"]),
        lambda: _check_attention(model["attn_implementation"]),
        lambda: with_located_layers(alignment),
        lambda: check_share(values["data"]["swapped_words"]),
        lambda: _check_retrieval(values["data"], alignment),
        lambda: _check_stored_targets(values),
        lambda: _check_export(values["export"], model),
        lambda: metrics_from_config(evaluation["root"] or ".", evaluation["metrics"]),
        lambda: _check_root(evaluation),
        lambda: checkpoint_to_continue(values["ckpt_path"], Path(values["run_dir"]).absolute()),
    ]
    wrong = value_problems(values)
    problems = list(wrong)
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(error)
        except (TypeError, ValueError):
            if not wrong:  # otherwise it stumbles over a value that has been told of
                raise
    return problems


def _options(values: Mapping[str, Any]) -> list[tuple[str, Any, Sequence[Any]]]:
    """(key, what was given, what is allowed) of the settings that are one of a few words."""
    model, evaluation, alignment = values["model"], values["evaluation"], values["alignment"]
    return [
        ("model.dtype", model["dtype"], list(DTYPES)),
        ("model.vision_features", model["vision_features"], TARGETS),
        ("model.attn_implementation", model["attn_implementation"], ATTENTION),
        ("training.accelerator", values["training"]["accelerator"], ACCELERATORS),
        ("alignment.retrieved", alignment["retrieved"], RETRIEVED),
        ("alignment.targets", alignment.get("targets", "online"), TARGETS),
        ("alignment.text_pooling", alignment.get("text_pooling", MEAN), POOLINGS),
        ("data.template", values["data"]["template"], TEMPLATES),
        ("evaluation.chat_template", evaluation["chat_template"], TEMPLATES),
        ("evaluation.plain_template", evaluation["plain_template"], TEMPLATES),
        ("export", values["export"], [*FORMATS, None]),
    ]


def _check_option(name: str, given: Any, allowed: Sequence[Any]) -> None:
    if given not in allowed:
        listed = ", ".join("null" if option is None else str(option) for option in allowed)
        raise UserError(f"{name} has no such option", given=given, allowed=listed, remedy=f"{name}=...")


def _check_device(accelerator: Any) -> None:
    if accelerator == "cuda" and not torch.cuda.is_available():
        remedy = "training.accelerator=auto, or a torch build for the GPU of this machine"
        raise UserError("torch finds no CUDA device here", given="training.accelerator=cuda", remedy=remedy)


def _check_strategy(training: Mapping[str, Any]) -> None:
    if training["strategy"] == "deepspeed":
        check_deepspeed(training["accelerator"])
    check_own_processes(training["processes"], training["strategy"], training["accelerator"])


def _check_attention(implementation: Any) -> None:
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "FlashAttention is not installed, or there is no GPU for it",
            given="model.attn_implementation=flash_attention_2",
            remedy="pip install flash-attn, or model.attn_implementation=sdpa, which has the same kernels in torch",
        )


def _check_export(form: Any, model: Mapping[str, Any]) -> None:
    """What a format cannot hold is found now, not after the training."""
    if form == "llava" and (set(model["train"]) - {"projector"} or model["lora"] is not None):
        raise UserError(
            "LLaVA's format holds the projector alone, and this run trains more",
            given=f"export=llava, model.train={list(model['train'])}, model.lora={model['lora']}",
            remedy="export=hf, or model.train=[projector] model.lora=null",
        )
    if form == "llava" and model["vlm"] is not None:
        raise UserError(
            "LLaVA's format needs the base language model, and a complete model does not name it",
            given=f"export=llava, model.vlm={model['vlm']}",
            remedy="export=hf, and after the training tga-export checkpoint=RUN format=llava llm_name=BASE",
        )


def _check_root(evaluation: Mapping[str, Any]) -> None:
    if evaluation["metrics"] and evaluation["root"] is None:
        raise UserError("The evaluation's files have no root", given="null", remedy="evaluation.root=DIR")


def _check_retrieval(data: Mapping[str, Any], alignment: Mapping[str, Any]) -> None:
    """A method's retrieved texts must come from somewhere."""
    if alignment.get("target", "caption") != "caption" and alignment["retrieved"] == "none":
        given = f"alignment.target={alignment['target']}, alignment.retrieved=none"
        remedy = "alignment.retrieved=loss, or alignment.target=caption"
        raise UserError("The target is a retrieved text, and none is used", given=given, remedy=remedy)
    if data["captions"] is not None and data["index_dir"] is None:
        raise UserError("data.captions needs a place for its index", remedy="data.index_dir=DIRECTORY")
    if alignment["retrieved"] != "none" and data["neighbours_used"] > data["neighbours_k"]:
        raise UserError(
            "More neighbours would be used than are kept",
            given=f"data.neighbours_used={data['neighbours_used']}, data.neighbours_k={data['neighbours_k']}",
            remedy="data.neighbours_k=... larger, or data.neighbours_used=... smaller",
        )
    if alignment["retrieved"] != "none" and data["captions"] is None and data["neighbours"] is None:
        remedy = "data.captions=PATH data.index_dir=DIRECTORY, or data.neighbours=PATH, or alignment.retrieved=none"
        raise UserError(
            "This method takes retrieved texts, and there is nowhere to take them from",
            given=f"alignment={alignment['name']}, retrieved={alignment['retrieved']}",
            remedy=remedy,
        )


def _check_stored_targets(values: Mapping[str, Any]) -> None:
    """Stored text targets need a place, and a language model whose states stay what they are."""
    if values["alignment"].get("targets") != "stored":
        return
    if values["data"]["targets_dir"] is None:
        raise UserError("Stored text targets need a place", remedy="data.targets_dir=DIRECTORY")
    model = values["model"]
    if "language_model" in model["train"] or model.get("lora") is not None:
        raise UserError(
            "Stored text targets hold for a frozen language model, and here it trains",
            given=f"model.train={model['train']}, model.lora={model.get('lora')}",
            remedy="alignment.targets=online",
        )
