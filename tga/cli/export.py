"""tga-export: a trained model as a Hugging Face directory or LLaVA projector, and LLaVA's projector as a directory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tga.cli.common import hydra_command, plain, start_run, write_summary
from tga.cli.run_directory import export_directory, run_directory
from tga.errors import UserError
from tga.export.hf import NO_CHAT_TEMPLATE, lacks_chat_template
from tga.export.licence import OTHER, Licence
from tga.export.run import FORMATS, card_of, export_source
from tga.export.source import Source, source_from_checkpoint, source_from_model
from tga.terminal import say
from tga.training.base_model import BaseModel

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@hydra_command("export")
def main(config: DictConfig) -> Path:
    """Load, export, and write summary.json; the exported directory is returned."""
    started = time.perf_counter()
    values = plain(config)
    if values["format"] not in FORMATS:
        raise UserError(
            "There is no such export format", given=values["format"], allowed=", ".join(FORMATS), remedy="format=hf"
        )
    figures, licence = _read_figures(values["figures"]), _licence(values)
    with run_directory(values["run_dir"]), export_directory(values["output"], option="output") as output:
        return _export(config, values, figures, licence, output, started)


def _export(
    config: DictConfig,
    values: Mapping[str, Any],
    figures: Mapping[str, object],
    licence: Licence | None,
    output: Path,
    started: float,
) -> Path:
    """Load, export, and write the summary."""
    source = _source(values)
    card = card_of(
        source,
        name=values["name"],
        method=values["method"],
        figures=figures,
        llm_name=values["llm_name"],
        vision_tower_name=values["vision_tower_name"],
        licence=licence,
        datasets=values["datasets"],
    )
    export_source(
        source, output, card, format=values["format"], llm_name=values["llm_name"],
        chat_template=values["chat_template"], verify=values["verify"],
    )  # fmt: skip
    trained_with = values["chat_template"] or source.hyper_parameters.get("template")
    if values["format"] == "hf" and lacks_chat_template(source.processor, trained_with):
        say(NO_CHAT_TEMPLATE, file=sys.stderr)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    measured = {
        "total_s": round(time.perf_counter() - started, 3),
        "size_mib": round(size / 2**20, 3),
        "parameters": source.model.num_parameters(),
        "format": values["format"],
    }
    write_summary(start_run(config), measured, config)
    return output


def _source(values: Mapping[str, Any]) -> Source:
    """The checkpoint, or else the model that is named, with the LLaVA projector put in if one is given."""
    checkpoint, projector, model = values["checkpoint"], values["projector"], values["model"]
    if values["dtype"] not in DTYPES:
        raise UserError("There is no such dtype", given=values["dtype"], allowed=", ".join(DTYPES), remedy="dtype=auto")
    dtype = DTYPES[str(values["dtype"])]
    assert isinstance(model, dict)
    named = any(model[key] is not None for key in ("llm", "vision_tower", "vlm"))
    if (checkpoint is not None) == (named or projector is not None):
        raise UserError(
            "Exactly one thing to export must be named",
            given=f"checkpoint={checkpoint}, projector={projector}, model={model}",
            allowed="checkpoint, or a model (with a LLaVA projector or a complete one)",
            remedy="checkpoint=RUN; or projector=PATH model.llm=PATH model.vision_tower=PATH; or model.vlm=PATH",
        )
    if checkpoint is not None:
        return source_from_checkpoint(str(checkpoint), dtype=dtype)
    return source_from_model(BaseModel(**model), projector=None if projector is None else str(projector), dtype=dtype)


def _licence(values: dict[str, object]) -> Licence | None:
    """The licence that is given; None where none is."""
    identifier, name, link = (values[key] for key in ("license", "license_name", "license_link"))
    if identifier is None and name is None and link is None:
        return None
    return Licence(str(identifier or OTHER), None if name is None else str(name), None if link is None else str(link))


def _read_figures(path: object) -> dict[str, object]:
    """The summary.json whose figures go on the card; empty where none is given."""
    if path is None:
        return {}
    file = Path(str(path))
    if not file.is_file():
        raise UserError(
            "There is no summary to take figures from", given=file, remedy="figures=PATH/summary.json, or figures=null"
        )
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The summary is no JSON ({error})", given=file, remedy="figures=PATH/summary.json") from error
    if not isinstance(figures, dict):
        raise UserError("The summary is no JSON object", given=file, remedy="figures=PATH/summary.json")
    return figures


if __name__ == "__main__":
    main()
