"""Export a loaded source in one of the formats, with a card made of what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tga.errors import UserError
from tga.export.card import ModelCard, is_hub_id, public_name
from tga.export.hf import export_hf
from tga.export.licence import Licence, licence_of_base
from tga.export.llava import export_llava
from tga.export.source import Source, base_llm_config
from tga.training.checkpoint import FROZEN
from tga.vlm.chat_templates import TEMPLATES

FORMATS = ("hf", "llava")
# `plain` is the format of captions, not of conversations.
CHAT_TEMPLATES = tuple(name for name in TEMPLATES if name != "plain")


def export_source(
    source: Source,
    out_dir: str | Path,
    card: ModelCard,
    *,
    format: str,
    llm_name: str | None = None,
    chat_template: str | None = None,
    verify: bool = True,
) -> Path:
    """Write `source` to `out_dir` as a Hugging Face directory (`hf`) or LLaVA projector (`llava`); returns `out_dir`.

    Args:
        llm_name: the base language model of a complete VLM; `llava` needs its config.
        chat_template: the name of the template that becomes the chat template; None takes that of the training.
        verify: as of `export_hf`.

    Raises:
        UserError: an unknown format or template; `llava` for a checkpoint that trained more than the projector; or as
            of `export_hf` and `export_llava`.
    """
    if format == "hf":
        if chat_template is not None and chat_template not in CHAT_TEMPLATES:
            raise UserError(
                "There is no such chat template",
                given=chat_template,
                allowed=", ".join(CHAT_TEMPLATES),
                remedy="chat_template=vicuna_v1, or chat_template=null",
            )
        trained_with = chat_template or source.hyper_parameters.get("template")
        return export_hf(source.model, source.processor, out_dir, card, trained_with=trained_with, verify=verify)
    if format != "llava":
        raise UserError("There is no such export format", given=format, allowed=", ".join(FORMATS), remedy="format=hf")
    prefix = source.family.projector + "."
    others = [name for name in source.trained or () if not name.startswith(prefix)]
    if others:
        raise UserError(
            "LLaVA's format holds the projector alone, and this checkpoint trained more",
            given=f"{len(others)} other trained parameters, the first {others[0]}",
            allowed="a checkpoint of a projector stage",
            remedy="format=hf",
        )
    return export_llava(source.model, source.family, out_dir, card, base_llm_config(source.base, llm_name))


def card_of(
    source: Source,
    *,
    name: str,
    method: str | None = None,
    figures: Mapping[str, Any] | None = None,
    llm_name: str | None = None,
    vision_tower_name: str | None = None,
    licence: Licence | None = None,
    datasets: Sequence[str] = (),
) -> ModelCard:
    """The card of `source`.

    Args:
        name: the title.
        method: how the projector was trained; None takes the checkpoint's `method`, if it has one.
        figures: a summary as `tga-evaluate` writes it; what is no number (versions, hashes) is left out.
        llm_name, vision_tower_name: what the card calls the base models instead of the path that was loaded, as a hub
            id tells another reader more than a directory of this machine.
        licence: of the exported model; None takes the one on the language model's card, if that lies here.
        datasets: hub ids.

    Raises:
        UserError: a data set that is no hub id.
    """
    if others := [name for name in datasets if not is_hub_id(name)]:
        raise UserError(
            "The card names data sets of the hub alone",
            given=others,
            allowed="organisation/name",
            remedy="datasets=[liuhaotian/LLaVA-Pretrain], or datasets=[]",
        )
    base, config = source.base, source.model.config
    settings = {
        key: value
        for key, value in source.hyper_parameters.items()
        if key not in ("base_model", "method", "objectives", FROZEN)
    }
    llm = llm_name or base.llm or config.text_config.name_or_path
    llm = llm or f"the language model of {public_name(str(base.vlm))}"
    return ModelCard(
        name=name,
        base_llm=llm,
        base_vision_tower=vision_tower_name
        or base.vision_tower
        or config.vision_config.name_or_path
        or f"the vision tower of {public_name(str(base.vlm))}",
        base_vlm=base.vlm,
        licence=licence or licence_of_base(base.llm or base.vlm),
        datasets=tuple(datasets),
        method=method or str(source.hyper_parameters.get("method", "not recorded")),
        settings=dict(_flat(settings)),
        figures=_measured(figures or {}),
        family=source.family.name,
    )


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _measured(summary: Mapping[str, Any]) -> dict[str, float | int]:
    return {
        key: value for key, value in summary.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
