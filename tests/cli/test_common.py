"""What all commands share: safe targets, hashes, the summary, one process at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from tga.alignment.tga import TGA
from tga.cli import common
from tga.cli.common import config_hash, describe_error, hydra_command, instantiate, prepare, write_summary
from tga.errors import UserError


def test_allowed_targets_are_made_with_plain_values() -> None:
    made = instantiate(OmegaConf.create({"_target_": "tga.alignment.tga.TGA", "layers": [1, 2], "form": "exp"}))
    assert isinstance(made, TGA) and made.layers == (1, 2) and made.form == "exp"
    settings = instantiate({"_target_": "tga.training.settings.TrainSettings", "epochs": 3})
    assert settings.epochs == 3


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "torch.os.system",
        "torch.nn.Linear",
        "torch.utils.collect_env.run",
        "tga.cli.common.os.system",
        "hydra.utils.call",
        3,
    ],
)
def test_other_targets_are_refused_wherever_they_stand(target: object) -> None:
    config = {"_target_": "tga.alignment.tga.TGA", "layers": {"a": [{"_target_": target}]}}
    with pytest.raises(UserError, match="may not be used"):
        instantiate(config)


def test_a_target_that_does_not_exist_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="does not exist.*tga.alignment.tga.TGB"):
        instantiate({"_target_": "tga.alignment.tga.TGB"})


def test_the_hash_is_of_what_is_computed() -> None:
    config = {"run_dir": "a", "ckpt_path": None, "seed": 1, "training": {"epochs": 1}}
    same = {"training": {"epochs": 1}, "seed": 1, "run_dir": "b", "ckpt_path": "last"}
    assert config_hash(config) == config_hash(same) == config_hash(OmegaConf.create(config))
    assert config_hash(config) != config_hash({**config, "seed": 2}) and len(config_hash(config)) == 16


def test_the_summary_is_flat_and_says_what_made_it(tmp_path: Path) -> None:
    config = OmegaConf.create({"seed": 1})
    write_summary(tmp_path, {"total_s": 1.5, "norm": None}, config)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["total_s"] == 1.5 and found["norm"] is None and found["config_hash"] == config_hash(config)
    assert found["version_torch"] == torch.__version__.split("+")[0] or found["version_torch"] == torch.__version__
    assert not any(isinstance(value, (dict, list)) for value in found.values())
    with pytest.raises(TypeError, match="'rates' is dict"):
        write_summary(tmp_path, {"rates": {}}, config)  # type: ignore[dict-item]


def test_a_users_mistake_is_found_below_another_error() -> None:
    try:
        try:
            raise UserError("Below", remedy="mend it")
        except UserError as error:
            raise RuntimeError("above") from error
    except RuntimeError as error:
        assert describe_error(error) == "Below. To change it: mend it."
    assert describe_error(ValueError("a defect")) is None


def run_command(monkeypatch: pytest.MonkeyPatch, error: Exception, *arguments: str) -> None:
    """Call a command with the config of tga-export whose work ends in `error`."""

    @hydra_command("export")
    def command(config: DictConfig) -> Path:
        raise error

    monkeypatch.setattr(sys, "argv", ["a-command", *arguments])
    command()


def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_command(monkeypatch, UserError("Wrong", given=3, remedy="name=4"), "name=3")
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert shown.err == "Error: Wrong. Given: 3. To change it: name=4.\n" and shown.out == ""


def test_a_defect_and_a_wanted_traceback_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(monkeypatch, ZeroDivisionError())
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="Wrong"):
        run_command(monkeypatch, UserError("Wrong"))


def test_what_a_run_reads_is_prepared_where_the_config_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []
    monkeypatch.setattr(common, "instantiate", called.append)
    prepare(OmegaConf.create({"prepare": {"_target_": None}}))
    assert called == []
    config = OmegaConf.create({"prepare": {"_target_": "tga.somewhere.make", "root": str(tmp_path / "made")}})
    prepare(config)
    assert called == [config.prepare] and list(tmp_path.iterdir()) == []
