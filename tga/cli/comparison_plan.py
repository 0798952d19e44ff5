"""Which runs a comparison is made of: tga-train per seed and trained method, tga-evaluate per seed and steered one.

All configs are composed here, so that mistakes show before any run. A steered method is data (`steered` in
compare.yaml): the checkpoint of a trained method, evaluated with further overrides of tga-evaluate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tga.cli.common import config_hash, plain
from tga.cli.inputs import inputs_identity
from tga.errors import UserError
from tga.evaluation.cells import Cell

# Keys of compare.yaml itself, and those that each run has of its own.
OWN = ("seeds", "methods", "baseline", "jobs", "fresh", "columns", "layer_means", "steered", "run_dir")
PER_RUN = {"seed": "seeds=[0,1,2]", "alignment": "methods=[baseline,tga]", "ckpt_path": "a second call, which goes on"}
DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
STEERED_KEYS = {"of", "overrides"}


@dataclass(frozen=True)
class PlannedRun:
    """A run before it is known what it reads: `config` is its own, resolved; `of` the run whose checkpoint it takes."""

    method: str
    seed: int
    directory: Path
    command: tuple[str, ...]
    config: dict[str, Any]
    config_hash: str
    of: PlannedRun | None = None

    def cell(self) -> Cell:
        """The run as a cell, with what it reads at this moment."""
        after = self.of.cell() if self.of is not None else None
        reads = inputs_identity(self.config)
        return Cell(self.method, self.seed, self.directory, self.command, self.config_hash, reads, after)


def check_comparison(values: Mapping[str, Any]) -> None:
    """Raise one UserError for methods, steered methods or seeds that cannot be run."""
    known = trained_methods()
    steered, methods, seeds = values["steered"], values["methods"], values["seeds"]
    unknown = [method for method in methods if method not in known and method not in steered]
    if unknown:
        allowed = ", ".join([*known, *steered])
        raise UserError("There is no such method", given=", ".join(unknown), allowed=allowed, remedy="methods=[...]")
    for name in [method for method in methods if method in steered]:
        _check_steered(name, steered[name], methods, known)
    repeated = len(set(seeds)) < len(seeds) or len(set(methods)) < len(methods)
    if not seeds or not methods or repeated or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UserError(
            "Methods and seeds must be different ones, and at least one each",
            given=f"methods {methods}, seeds {seeds}",
            allowed="names; whole numbers from 0",
            remedy="methods=[baseline,tga] seeds=[0,1,2]",
        )
    if not isinstance(values["jobs"], int) or values["jobs"] < 1:
        raise UserError("At least one run at a time", given=values["jobs"], allowed="1, 2, ...", remedy="jobs=2")


def trained_methods() -> list[str]:
    """The configs of the group alignment."""
    return list(GlobalHydra.instance().config_loader().get_group_options("alignment", ObjectType.CONFIG))


def _check_steered(name: str, entry: Any, methods: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError for a steered method that is not well described, or stands on nothing that is run."""
    remedy = "'+steered.NAME={of: METHOD, overrides: [\"KEY=VALUE\"]}'"
    listed = entry.get("overrides") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or set(entry) != STEERED_KEYS or not isinstance(listed, list) or not listed:
        allowed = "of: a trained method; overrides: at least one override of tga-evaluate"
        raise UserError(
            "A steered method is not well described", given=f"{name}: {entry}", allowed=allowed, remedy=remedy
        )
    if name in known:
        problem = "A steered method has the name of a trained one"
        raise UserError(problem, given=name, allowed=f"any but {', '.join(known)}", remedy=remedy)
    if entry["of"] not in methods or entry["of"] not in known:
        trained = ", ".join(method for method in methods if method in known)
        problem = f"The steered method {name} stands on a method that is not trained here"
        raise UserError(problem, given=entry["of"], allowed=trained, remedy="methods=[...] with it, or another `of`")


def plan_runs(values: Mapping[str, Any], overrides: Sequence[str], run_dir: Path) -> list[PlannedRun]:
    """One run per seed and method, in that order.

    overrides: those of this command; all that is not its own goes to every training run, and `alignment.KEY=...` to the
    methods that have the key. Raises UserError where no method has it.
    """
    passed = _passed_on(overrides)
    general = [override for override in passed if not _key(override).startswith("alignment.")]
    special = [override for override in passed if _key(override).startswith("alignment.")]
    trained = [method for method in values["methods"] if method not in values["steered"]]
    fitting = {method: _fitting(special, [*general, f"alignment={method}"]) for method in trained}
    unused = [override for override in special if not any(override in kept for kept in fitting.values())]
    if unused:
        raise UserError("No method has this setting", given=unused, remedy="leave it out, or methods=[...]")
    runs = []
    for seed in values["seeds"]:
        made = {}
        for method in trained:
            arguments = ["export=null", *general, f"alignment={method}", f"seed={seed}", *fitting[method]]
            made[method] = _planned("train", method, seed, arguments, run_dir, None)
        for method in values["methods"]:
            if method in values["steered"]:
                entry = values["steered"][method]
                made[method] = _evaluation(method, seed, made[entry["of"]], entry["overrides"], run_dir)
            runs.append(made[method])
    return runs


def _planned(
    command: str, method: str, seed: int, arguments: Sequence[str], run_dir: Path, of: PlannedRun | None
) -> PlannedRun:
    """A run in a directory named by method, seed and config: runs with other settings stand beside each other."""
    config = compose(command, overrides=[*arguments, "run_dir=unknown"])
    digest = config_hash(config)
    directory = run_dir / "runs" / f"{method}-seed{seed}-{digest[:8]}"
    line = (sys.executable, "-m", f"tga.cli.{command}", *arguments, f"run_dir={override_text(str(directory))}")
    return PlannedRun(method, seed, directory, line, plain(config), digest, of)


def _evaluation(method: str, seed: int, of: PlannedRun, overrides: Sequence[str], run_dir: Path) -> PlannedRun:
    """tga-evaluate of the trained run's checkpoint: its questions, dtype and device, and then the overrides."""
    keys = [_key(override) for override in overrides]
    if refused := [key for key in keys if key in ("models", "run_dir") or key.startswith("hydra")]:
        problem = f"The steered method {method} sets what the comparison sets"
        raise UserError(problem, given=refused, remedy="take it out of steered.NAME.overrides")
    model = of.config["model"]
    checkpoint = os.path.relpath(of.directory)  # as a run's own paths: from where the command is called
    arguments = [f"models={override_text({method: checkpoint})}", f"dtype={model['dtype']}"]
    arguments += [f"attn_implementation={model['attn_implementation']}"]
    arguments += [f"device={DEVICES.get(of.config['training']['accelerator'], 'auto')}"]
    if "evaluation" not in keys:  # another group of questions brings all its settings
        arguments += [f"++evaluation.{key}={override_text(value)}" for key, value in of.config["evaluation"].items()]
    return _planned("evaluate", method, seed, [*arguments, *overrides], run_dir, of)


def _passed_on(overrides: Sequence[str]) -> list[str]:
    """This command's overrides without its own keys; UserError for a key that differs between the runs."""
    passed = []
    for override in overrides:
        key = _key(override)
        if key in PER_RUN:
            raise UserError(f"{key} differs between the runs", given=override, remedy=PER_RUN[key])
        if key.split(".")[0] not in OWN and not key.startswith("hydra"):
            passed.append(override)
    return passed


def _key(override: str) -> str:
    return OverridesParser.create().parse_override(override).key_or_group


def _fitting(special: Sequence[str], base: Sequence[str]) -> list[str]:
    """Those of the overrides whose key the config has, or that add one."""
    if not special:
        return []
    config = compose("train", overrides=list(base))
    fitting = []
    for override in special:
        *parents, last = _key(override).split(".")
        parent = OmegaConf.select(config, ".".join(parents))
        if override.startswith("+") or (isinstance(parent, DictConfig) and last in parent):
            fitting.append(override)
    return fitting


def override_text(value: Any) -> str:
    """A plain value in Hydra's override grammar, texts quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_text(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(override_text(entry) for entry in value) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
