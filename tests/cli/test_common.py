"""What all commands share: safe targets, hashes, the summary, one process at a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from tga.cli import common
from tga.cli.common import config_hash, describe_error, hydra_command, prepare, write_summary
from tga.errors import UserError


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
    prepare(OmegaConf.create({"prepare": {"world": None}}))

    def make(root: str, size: int = 3) -> None:
        called.append((root, size))

    monkeypatch.setattr(common, "registered", lambda group, name, key: {"here": make}[name])
    prepare(OmegaConf.create({"prepare": {"world": "here", "root": str(tmp_path / "made"), "size": 4}}))
    assert called == [(str(tmp_path / "made"), 4)] and list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="prepare does not have the keys.*depth.*Allowed: root, size"):
        prepare(OmegaConf.create({"prepare": {"world": "here", "root": str(tmp_path / "made"), "depth": 4}}))


def test_a_world_that_nobody_registered_and_settings_without_a_world_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="nothing that is registered.*os:system.*Allowed.*mini|may not have code.*os:system"
    ):
        prepare(OmegaConf.create({"prepare": {"world": "os:system", "root": str(tmp_path)}}))
    with pytest.raises(UserError, match="settings and no world.*_target_"):
        prepare(OmegaConf.create({"prepare": {"_target_": "os.system", "world": None}}))
