"""Every shipped config composes, and an experiment's values win over the defaults."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).resolve().parent.parent / "conf"
COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
FILES = sorted(CONF.rglob("*.yaml"))


def composed(command: str, *overrides: str) -> DictConfig:
    """The config of `command` under `overrides`, Hydra's own part included."""
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        return compose(command, overrides=list(overrides), return_hydra_config=True)


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar or list of `node` with the keys that lead to it."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, str(key)))
    else:
        yield path, node


def test_there_are_commands_and_experiments() -> None:
    assert {"build_index", "train", "evaluate", "export", "compare"} <= set(COMMANDS)
    assert {"mini", "mini_baseline", "llava7b"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    assert "hydra" in composed(command)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_wins(experiment: str) -> None:
    raw = read(CONF / "experiment" / f"{experiment}.yaml")
    config = composed("train", f"+experiment={experiment}")
    values = OmegaConf.to_container(config, resolve=False)
    for path, expected in leaves({key: value for key, value in raw.items() if key != "defaults"}):
        found: Any = values
        for key in path:
            found = found[key]
        assert found == expected, f"{'.'.join(path)} of {experiment}.yaml lost"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiments_choices_win(experiment: str) -> None:
    defaults = read(CONF / "experiment" / f"{experiment}.yaml").get("defaults", [])
    chosen = composed("train", f"+experiment={experiment}").hydra.runtime.choices
    for entry in defaults:
        if isinstance(entry, dict):
            ((key, option),) = entry.items()
            group = key.removeprefix("override ").strip().removeprefix("/")
            assert chosen[group] == option


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_line_wins_over_an_experiment(experiment: str) -> None:
    assert composed("train", f"+experiment={experiment}", "seed=977").seed == 977


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_interpolation_of_an_experiment_resolves(experiment: str) -> None:
    config = composed("train", f"+experiment={experiment}", "hydra.job.num=0", "hydra.runtime.output_dir=unused")
    HydraConfig.instance().set_config(config)
    del config.hydra
    values = OmegaConf.to_container(config, resolve=True)
    assert values["seed"] == config.seed


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_an_option_and_no_default(experiment: str) -> None:
    for command in COMMANDS:
        defaults = read(CONF / f"{command}.yaml").get("defaults", [])
        assert not any("experiment" in str(entry) for entry in defaults), f"{command}.yaml"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_a_config_says_what_it_is_for(path: Path) -> None:
    first = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")][0]
    assert first.startswith("# ")


def header(path: Path) -> dict[str, str]:
    """The comment at the top: what it is for under "purpose", and each paragraph that names itself under its name."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    found, name = {"purpose": ""}, "purpose"
    for line in itertools.takewhile(lambda line: line.startswith("#"), lines):
        text = line.removeprefix("# ")
        if named := re.match(r"(Needs|Run|Used by|Override): ?", text):
            name, text = named.group(1), text[named.end() :]
            found[name] = ""
        found[name] = f"{found[name]} {text}".strip()
    return found


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_header_of_an_experiment_says_what_it_needs_and_its_commands_compose(experiment: str) -> None:
    said = header(CONF / "experiment" / f"{experiment}.yaml")
    assert set(said) == {"purpose", "Needs", "Run", "Override"} and all(said.values())
    program, chosen, *arguments = shlex.split(said["Run"])
    assert (program, chosen) == ("tga-train", f"+experiment={experiment}")
    overrides = shlex.split(said["Override"])
    assert overrides and all("=" in override for override in overrides)
    config = composed("train", chosen, *arguments, *overrides)
    del config.hydra
    assert OmegaConf.missing_keys(config) == set()


@pytest.mark.parametrize("option", ["ddp", "fsdp2", "deepspeed"])
def test_the_command_of_a_way_to_train_composes(option: str) -> None:
    said = header(CONF / "training" / f"{option}.yaml")
    assert said["Needs"] and said["Override"]
    program, *arguments = shlex.split(said["Run"])
    training = composed("train", *arguments).training
    assert (program, training.strategy, training.processes) == ("tga-train", option, 8)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_no_config_names_what_is_called(path: Path) -> None:
    keys = {key for path_to, _ in leaves(read(path)) for key in path_to}
    assert "_target_" not in keys
