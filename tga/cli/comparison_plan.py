"""Which runs a comparison is made of: tga-train per seed and trained method, tga-evaluate per seed and steered one.

All configs are composed here, so that mistakes show before any run. Two kinds of methods are data in compare.yaml: a
variant is a trained method under further overrides of tga-train, a steered one the checkpoint of a trained method
(variants among them), evaluated with further overrides of tga-evaluate.
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

from tga.cli.common import config_hash, plain, texts_of_override
from tga.cli.inputs import inputs_identity
from tga.errors import UserError
from tga.evaluation.cells import Cell

# Keys of compare.yaml itself, and those that each run has of its own.
OWN = (
    "seeds", "methods", "variants", "steered", "baseline", "jobs", "fresh", "columns", "layer_means", "run_dir",
    "report_dir", "comparison",
)  # fmt: skip
PER_RUN = {"seed": "seeds=[0,1,2]", "alignment": "methods=[baseline,tga]", "ckpt_path": "a second call, which goes on"}
DEVICES = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
ENTRY_KEYS = {"of", "overrides"}
RUNS = "runs"  # in the directory of the comparison


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
    """Raise one UserError for methods, variants, steered methods or seeds that cannot be run."""
    known = trained_methods()
    variants, steered, methods, seeds = (values[key] for key in ("variants", "steered", "methods", "seeds"))
    unknown = [method for method in methods if method not in {*known, *variants, *steered}]
    if unknown:
        allowed = ", ".join([*known, *variants, *steered])
        raise UserError("There is no such method", given=", ".join(unknown), allowed=allowed, remedy="methods=[...]")
    trained = [method for method in methods if method not in steered]
    for name in methods:
        if name in variants:
            _check_entry("variant", name, variants[name], taken=[*known, *steered], below=known)
        if name in steered:
            _check_entry("steered method", name, steered[name], taken=[*known, *variants], below=trained)
    repeated = len(set(seeds)) < len(seeds) or len(set(methods)) < len(methods)
    if not seeds or not methods or repeated or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UserError(
            "Methods and seeds must be different ones, and at least one each",
            given=f"methods {methods}, seeds {seeds}",
            allowed="names; whole numbers from 0",
            remedy="methods=[baseline,tga] seeds=[0,1,2]",
        )
    if values["baseline"] not in {*methods, *known}:
        raise UserError(
            "The differences would be taken to a method that there is not",
            given=f"baseline={values['baseline']}",
            allowed=", ".join(methods),
            remedy=f"baseline={methods[0]}",
        )
    if not isinstance(values["jobs"], int) or values["jobs"] < 1:
        raise UserError("At least one run at a time", given=values["jobs"], allowed="1, 2, ...", remedy="jobs=2")


def trained_methods() -> list[str]:
    """The configs of the group alignment."""
    return list(GlobalHydra.instance().config_loader().get_group_options("alignment", ObjectType.CONFIG))


def _check_entry(kind: str, name: str, entry: Any, *, taken: Sequence[str], below: Sequence[str]) -> None:
    """Raise UserError for a variant or steered method that is not well described, or stands on nothing that it can.

    taken: names that it may not have. below: the methods that it may stand on.
    """
    group, command = ("variants", "tga-train") if kind == "variant" else ("steered", "tga-evaluate")
    where = "another `of`" + ("" if kind == "variant" else ", or methods=[...] with this one among them")
    remedy = f"'+{group}.NAME={{of: METHOD, overrides: [\"KEY=VALUE\"]}}'"
    listed = entry.get("overrides") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or set(entry) != ENTRY_KEYS or not isinstance(listed, list) or not listed:
        allowed = f"of: a trained method; overrides: at least one override of {command}"
        raise UserError(f"A {kind} is not well described", given=f"{name}: {entry}", allowed=allowed, remedy=remedy)
    if name in taken:
        problem = f"A {kind} has the name of another method"
        raise UserError(problem, given=name, allowed=f"any but {', '.join(taken)}", remedy=remedy)
    if entry["of"] not in below:
        problem = f"The {kind} {name} stands on what it cannot"
        raise UserError(problem, given=entry["of"], allowed=", ".join(below), remedy=where)


def plan_runs(values: Mapping[str, Any], overrides: Sequence[str], run_dir: Path) -> list[PlannedRun]:
    """One run per seed and method, in that order.

    overrides: those of this command; all that is not its own goes to every training run, and `alignment.KEY=...` to the
    methods that have the key, the variants of such a method included; a variant's own overrides come last. Raises
    UserError where no method has it.
    """
    passed = _passed_on(overrides)
    general = [override for override in passed if not _key(override).startswith("alignment.")]
    special = [override for override in passed if _key(override).startswith("alignment.")]
    trained = {
        method: _recipe(method, values["variants"]) for method in values["methods"] if method not in values["steered"]
    }
    fitting = {of: _fitting(special, [*general, f"alignment={of}"]) for of, _ in trained.values()}
    unused = [override for override in special if not any(override in kept for kept in fitting.values())]
    if unused:
        raise UserError("No method has this setting", given=unused, remedy="leave it out, or methods=[...]")
    runs = []
    for seed in values["seeds"]:
        made = {}
        for method, (of, own) in trained.items():
            arguments = ["export=null", *general, f"alignment={of}", f"seed={seed}", *fitting[of], *own]
            made[method] = _planned("train", method, seed, arguments, run_dir, None)
        for method in values["methods"]:
            if method in values["steered"]:
                entry = values["steered"][method]
                made[method] = _evaluation(method, seed, made[entry["of"]], entry["overrides"], run_dir)
            runs.append(made[method])
    return runs


def _recipe(method: str, variants: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The config of the group alignment that a trained method is, and its own overrides.

    Raises:
        UserError: a variant that sets what the comparison sets.
    """
    if method not in variants:
        return method, []
    overrides = list(variants[method]["overrides"])
    _refuse_keys(f"The variant {method}", overrides, (*PER_RUN, "run_dir"), "variants")
    # A run takes its overrides for its user's own words, and may import what they name.
    if paths := [text for said in overrides for text in texts_of_override(said, "alignment.objectives") if ":" in text]:
        raise UserError(
            f"The variant {method} names code by its import path",
            given=paths,
            allowed="names of registered objectives",
            remedy=f"+alignment.objectives.NAME.kind={paths[0]} on your own command line, or register it",
        )
    return variants[method]["of"], overrides


def _refuse_keys(who: str, overrides: Sequence[str], refused: Sequence[str], group: str) -> None:
    keys = [_key(override) for override in overrides]
    if found := [key for key in keys if key in refused or key.startswith("hydra")]:
        raise UserError(
            f"{who} sets what the comparison sets", given=found, remedy=f"take it out of {group}.NAME.overrides"
        )


def _planned(
    command: str, method: str, seed: int, arguments: Sequence[str], run_dir: Path, of: PlannedRun | None
) -> PlannedRun:
    """A run in a directory named by method, seed and config: runs with other settings stand beside each other."""
    config = compose(command, overrides=[*arguments, "run_dir=unknown"])
    digest = config_hash(config)
    directory = run_dir / RUNS / f"{method}-seed{seed}-{digest[:8]}"
    line = (sys.executable, "-m", f"tga.cli.{command}", *arguments, f"run_dir={override_text(str(directory))}")
    return PlannedRun(method, seed, directory, line, plain(config), digest, of)


def _evaluation(method: str, seed: int, of: PlannedRun, overrides: Sequence[str], run_dir: Path) -> PlannedRun:
    """tga-evaluate of the trained run's checkpoint: its questions, dtype and device, and then the overrides."""
    _refuse_keys(f"The steered method {method}", overrides, ("models", "run_dir"), "steered")
    model = of.config["model"]
    checkpoint = os.path.relpath(of.directory)  # as a run's own paths: from where the command is called
    arguments = [f"models={override_text({method: checkpoint})}", f"dtype={model['dtype']}"]
    arguments += [f"attn_implementation={model['attn_implementation']}"]
    arguments += [f"device={DEVICES.get(of.config['training']['accelerator'], 'auto')}"]
    if "evaluation" not in [
        _key(override) for override in overrides
    ]:  # another group of questions brings all its settings
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
