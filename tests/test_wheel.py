"""The built wheel, used as a user does: installed, from a directory that holds nothing of the source tree.

Run by .ci/run in an environment with the wheel in it (`pytest -m wheel`), with TGA_WHEEL_SOURCE naming the source tree
to compare with. The default tier leaves it out: there the package comes from the working tree.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

# Each command with a key that its config alone has.
COMMANDS = {
    "tga-build-index": "encoder",
    "tga-train": "alignment",
    "tga-evaluate": "models",
    "tga-steer": "steering",
    "tga-export": "format",
    "tga-compare": "methods",
    "tga-locate": "localization",
    "tga-doctor": "model",
}


@pytest.fixture
def source() -> Path:
    """The tree that the wheel was built from."""
    return Path(os.environ["TGA_WHEEL_SOURCE"])


def run(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run an installed command of this environment in `directory`."""
    program = Path(sys.prefix) / "bin" / command[0]
    return subprocess.run([str(program), *command[1:]], cwd=directory, capture_output=True, text=True, timeout=300)


def digests(root: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of the files under `root` by their path in it."""
    files = [path for path in root.rglob(pattern) if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("module", ["tga", "tga.conf", "retrieval_index"])
def test_the_packages_come_from_the_wheel(module: str) -> None:
    location = Path(str(resources.files(module))).resolve()
    assert location.is_relative_to(Path(sys.prefix).resolve())


def test_every_module_travels(source: Path) -> None:
    for package in ("tga", "retrieval_index"):
        installed = digests(Path(str(resources.files(package))), "*.py")
        installed = {name: digest for name, digest in installed.items() if not name.startswith("conf/")}
        assert installed == digests(source / package, "*.py")


def test_every_config_travels(source: Path) -> None:
    configs = digests(source / "conf", "*.yaml")
    assert len(configs) > 10
    assert digests(Path(str(resources.files("tga.conf"))), "*.yaml") == configs


def test_every_asset_travels(source: Path) -> None:
    assets = digests(source / "tga" / "mini" / "assets", "*")
    kinds = {Path(name).suffix for name in assets}
    assert {".png", ".json", ".safetensors"} <= kinds
    assert digests(Path(str(resources.files("tga.mini"))) / "assets", "*") == assets


def test_nothing_else_is_installed() -> None:
    files = metadata.distribution("tga-vlm").files or []
    tops = {file.parts[0] for file in files if not file.parts[0].startswith("..")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tga", "retrieval_index"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes_its_config(command: str, tmp_path: Path) -> None:
    result = run(tmp_path, command, "--cfg", "job")
    assert result.returncode == 0, result.stderr
    keys = {line.split(":")[0] for line in result.stdout.splitlines()}
    assert COMMANDS[command] in keys
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_composes(tmp_path: Path) -> None:
    result = run(tmp_path, "tga-train", "+experiment=mini", "seed=977", "--cfg", "job")
    assert result.returncode == 0, result.stderr
    assert "seed: 977" in result.stdout


def test_an_unknown_experiment_is_one_message(tmp_path: Path) -> None:
    result = run(tmp_path, "tga-train", "+experiment=minni")
    assert result.returncode == 1
    assert "minni" in result.stderr and "Traceback" not in result.stderr
