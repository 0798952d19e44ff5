"""Which model `tga-locate` looks into: a VLM, one whose projector is trained first, or a language model alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from tqdm import tqdm

from retrieval_index.visible_text import visible
from tga.cli.common import config_hash, plain
from tga.cli.comparison_plan import override_text
from tga.cli.inputs import inputs_identity
from tga.errors import UserError
from tga.evaluation.cell_runs import run_cells
from tga.evaluation.cells import LOG, Cell, cell_step, reason_to_run
from tga.evaluation.models import check_models, load_language_model, load_model
from tga.vlm.families import Family, family_of
from tga.vlm.language_model import LANGUAGE_MODEL

LOADING = ("dtype", "device", "attn_implementation")
# What concerns this command alone; every other override holds for the training of a projector too.
OWN = ("run_dir", "vlm", *LOADING, "localization", "alignment", "evaluation")


@dataclass(frozen=True)
class Subject:
    """A loaded model. `processor` is None for a language model alone, which knows no pictures."""

    path: str
    model: Any
    tokenizer: Any
    processor: Any | None
    family: Family

    @property
    def image_token(self) -> str:
        """The text that stands for a picture, which no message may hold."""
        return "<image>" if self.processor is None else str(self.processor.image_token)


def check_source(values: Mapping[str, Any]) -> None:
    """Refuse a config that names no model, before anything is prepared.

    Raises:
        UserError: neither a vlm nor a language model.
    """
    if not has_pictures(values) and values["model"]["llm"] is None:
        raise UserError(
            "No model is named",
            allowed="a vlm (a run of tga-train, a .ckpt, a Hugging Face directory, a hub id), or an LLM alone",
            remedy="vlm=PATH, or model.llm=PATH, or +experiment=NAME",
        )


def has_pictures(values: Mapping[str, Any]) -> bool:
    """Whether the model that the config names knows pictures."""
    return _named_vlm(values) is not None or values["localization"]["projector"] is not None


def _named_vlm(values: Mapping[str, Any]) -> str | None:
    """The VLM that is named, by this command's own key or by an experiment that continues from a complete one."""
    return values["vlm"] or values["model"]["vlm"]


def load_subject(values: Mapping[str, Any], overrides: Sequence[str]) -> Subject:
    """Load the model that the config names, after training its projector where that is asked for and missing.

    overrides: those of the command line.

    Raises:
        UserError: the model cannot be found or loaded, or the training failed.
    """
    loading = {key: str(values[key]) for key in LOADING}
    if not has_pictures(values):
        path = str(values["model"]["llm"])
        model, tokenizer = load_language_model(path, **loading)
        return Subject(path, model, tokenizer, None, LANGUAGE_MODEL)
    path = _named_vlm(values) or str(_trained_projector(values["localization"], overrides))
    check_models({"vlm": str(path)})
    model, processor = load_model(str(path), **loading)
    return Subject(str(path), model, processor.tokenizer, processor, family_of(model))


def _trained_projector(settings: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """The run whose projector is looked into; trained unless it is there, complete, of the same config and files."""
    method, directory = str(settings["projector"]), Path(settings["projector_dir"]).absolute()
    parser = OverridesParser.create()
    kept = [text for text in overrides if parser.parse_override(text).key_or_group.split(".")[0] not in OWN]
    arguments = [*kept, f"alignment={method}", "evaluation=none", "export=null"]
    arguments.append(f"run_dir={override_text(str(directory))}")
    config = compose("train", overrides=arguments)
    command = (sys.executable, "-m", "tga.cli.train", *arguments)
    reads = inputs_identity(plain(config))
    cell = Cell(method, int(config.seed), directory, command, config_hash(config), reads)
    reason = reason_to_run(cell)
    if reason is None:
        return directory
    total = config.training.max_steps
    with tqdm(total=total, desc=visible(f"training a projector ({method})"), unit="step") as bar:
        said = f"No vlm is named, so one is trained with the method {method} ({reason}). Log: {directory / LOG}"
        bar.write(visible(said), file=sys.stderr)

        def on_wait(_running: list[Cell]) -> None:
            bar.n = cell_step(cell) or 0
            bar.refresh()

        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        (outcome,) = run_cells([cell], jobs=1, threads=threads, on_wait=on_wait)
    if outcome.code != 0:
        raise UserError(
            f"The projector could not be trained: exit code {outcome.code}, {outcome.tail}",
            given=directory / LOG,
            remedy="mend the cause, or name a model with vlm=PATH, or localization.projector=null for the text alone, "
            "or localization.projector_dir=ANOTHER_DIRECTORY",
        )
    return directory
