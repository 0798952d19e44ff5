"""No command lets Hydra unpickle a file, however its option is abbreviated."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tga.child_process import module_command, module_environment

COMMANDS = sorted(
    script.module for script in metadata.entry_points(group="console_scripts") if script.module.startswith("tga.cli.")
)
OPTION = "--experimental-rerun"


class Opens:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_the_pickle_does_what_it_should(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Opens(tmp_path / "loaded")))
    assert (tmp_path / "loaded").is_dir()


@pytest.mark.parametrize("length", range(len("--e"), len(OPTION) + 1))
@pytest.mark.parametrize("form", ["{} mini", "{}=mini", "seed=1 {} mini", "--help {} mini"])
def test_every_abbreviation_is_refused(
    length: int, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tga.cli.train import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").write_bytes(pickle.dumps(Opens(tmp_path / "loaded")))
    monkeypatch.setattr(sys, "argv", ["tga-train", *form.format(OPTION[:length]).split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and not (tmp_path / "loaded").exists()
    said = capsys.readouterr().err
    assert "+experiment=NAME" in said and f"Given: {OPTION[:length]}" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_refuses_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mini").write_bytes(pickle.dumps(Opens(tmp_path / "loaded")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", "--experiment", "mini"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main()
    assert end.value.code == 1 and not (tmp_path / "loaded").exists()
    assert re.search(r"^Error: .*\+experiment=NAME", capsys.readouterr().err)


def test_a_process_that_another_one_starts_refuses_it_too(tmp_path: Path) -> None:
    (tmp_path / "mini").write_bytes(pickle.dumps(Opens(tmp_path / "loaded")))
    command = module_command("tga.cli.verify_data", ["--exp=mini"])
    ended = subprocess.run(command, cwd=tmp_path, env=module_environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and not (tmp_path / "loaded").exists() and "+experiment=NAME" in ended.stderr
