"""Values of the wrong kind: told by their key, all at once, and no shipped config has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.test_configs import COMMANDS, EXPERIMENTS, composed
from tga.cli.value_checks import KINDS, refuse, value_problems
from tga.errors import UserError

GROUPS = (
    *((command, ()) for command in COMMANDS),
    *((command, (f"+experiment={name}",)) for command in ("train", "compare", "locate") for name in EXPERIMENTS),
    *(("train", (f"alignment={name}", "model=vlm")) for name in ("regap", "tga_regap", "tga_paper", "tga_contrastive")),
    *(("train", (f"training={name}",)) for name in ("ddp", "fsdp2", "deepspeed")),
    *((command, ("steering=cmrm_sample", "evaluation=mini")) for command in ("evaluate", "steer")),
)


def settled(command: str, *overrides: str) -> dict[str, Any]:
    """The composed config of a command as plain values, what it asks of the user filled in."""
    config = composed(command, *overrides)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "given")
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@pytest.mark.parametrize(("command", "overrides"), GROUPS)
def test_what_is_shipped_is_of_the_right_kind(command: str, overrides: tuple[str, ...]) -> None:
    assert [str(problem) for problem in value_problems(settled(command, *overrides))] == []


def test_every_key_of_the_table_is_in_a_config() -> None:
    """A misspelled key would check nothing."""
    everything = [settled(command, *overrides) for command, overrides in GROUPS]
    optional = ("model.lora.", "models.*", "variants.*", "steered.*")  # keys of what is null or empty by default

    def held(node: Any, parts: list[str]) -> bool:
        if not parts:
            return True
        if not isinstance(node, dict):
            return False
        names = list(node) if parts[0] == "*" else [parts[0]]
        return any(held(node[name], parts[1:]) for name in names if name in node)

    unknown = [
        key
        for key in KINDS
        if not key.startswith(optional) and not any(held(values, key.split(".")) for values in everything)
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("key", "wrong", "right", "allowed"),
    [
        ("training.batch_size", ["abc", 2.5, True, [2]], [1, 32], "a whole number"),
        ("training.learning_rate", ["fast", float("nan"), float("inf"), True], [1, 0.5], "a number"),
        ("training.betas", [0.9, [0.9], [2, 3], "ab"], [[0.9, 0.99]], "of 2, each a number from 0 below 1"),
        ("training.num_workers", [-1, "two"], [0, 8], "a whole number from 0"),
        ("training.seed", [-1, "abc", 2**32], [0, 2**32 - 1], "from 0 to 4294967295"),
        ("training.max_steps", ["all", 1.5], [None, 3], "a whole number, or null"),
        ("training.loggers", ["tensorboard", 3], [[], ["tensorboard"]], "a list of texts"),
        ("model.lora", [True, 3], [None, {"rank": 4}], "{KEY: VALUE, ...}, or null"),
        ("alignment.layers", [5, "some", [-1], ["a"]], ["all", "located", [0, 3]], "all, located"),
        ("evaluation.max_new_tokens", [0, "a"], [1], "a whole number from 1"),
        ("evaluation.metrics.x.layers", [3, "one"], ["all", [1]], "all, located"),
        ("models", ["RUN", ["RUN"]], [{"a": "RUN"}], "{KEY: VALUE, ...}"),
        ("device", ["gpu", "cuda:99", "cuda:x"], ["auto", "cpu"], "a CUDA device that torch finds here"),
        ("attn_implementation", ["foo"], ["sdpa", "eager"], "sdpa, eager, or flash_attention_2"),
        ("steering.alphas", [0.5, ["a"], [-1]], [None, [0, 0.5]], "each a number from 0"),
        ("seeds", [5, [-1]], [[0, 1]], "a list [..., ...]"),
        ("variants.x.overrides", [[{"a": 1}], "a=1"], [["a=1"]], "a list of texts"),
    ],
)
def test_a_value_of_another_kind_is_told_by_its_key(key: str, wrong: list[Any], right: list[Any], allowed: str) -> None:
    def nested(value: Any) -> dict[str, Any]:
        for part in reversed(key.split(".")):
            value = {part: value}
        return dict(value)

    for value in wrong:
        (problem,) = value_problems(nested(value))
        assert f"{key} is not what it must be. Given: {value}." in str(problem) and allowed in str(problem)
    for value in right:
        assert value_problems(nested(value)) == []


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "f.txt").touch()
    (problem,) = value_problems({"run_dir": str(tmp_path / "f.txt")})
    assert "run_dir is not what it must be" in str(problem)
    assert value_problems({"run_dir": str(tmp_path), "prepare": {"root": str(tmp_path / "new")}}) == []


def test_many_are_one_message() -> None:
    refuse([])
    with pytest.raises(UserError, match="^seed is not"):
        refuse(value_problems({"seed": "abc"}))
    with pytest.raises(UserError, match=r"2 problems were found.*\n  1\. .*\n  2\. "):
        refuse(value_problems({"seed": "abc", "jobs": 0}))
