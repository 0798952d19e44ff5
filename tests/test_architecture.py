"""The house's rules, read from the source: imports flow one way, rooms keep to themselves."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tga", "retrieval_index")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# A room may import from rooms below it and from itself. A checkpoint's contents are training's knowledge, and those
# who read checkpoints ask it.
ROOMS = {
    "vlm": set(),
    "alignment": {"vlm"},
    "data": {"vlm"},
    "training": {"alignment", "data", "vlm"},
    "evaluation": {"training", "alignment", "data", "vlm"},
    "export": {"training", "alignment", "data", "vlm"},
    "steering": {"alignment", "data", "vlm"},
    "localization": {"alignment", "data", "vlm"},
    "cli": {"training", "evaluation", "export", "steering", "localization", "alignment", "data", "vlm"},
    "mini": {"evaluation", "data", "vlm"},
}  # fmt: skip
# What the index and the rooms do in the same way, and what knows nothing of an index.
FOR_ALL = {"retrieval_index.model_code", "retrieval_index.picture_files", "retrieval_index.visible_text"}
# The modules beside the rooms serve them all.
SHARED = {path.stem for path in (ROOT / "tga").glob("*.py")} - {"__init__"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that `path` imports, anywhere in it; `from a import b` counts as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """`tga.vlm.spans` -> `vlm`; None outside `tga`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "tga" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_flow_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    modules = list(imported_modules(path))
    used = {room for module in modules if (room := room_of(module))}
    if parts[0] == "retrieval_index":
        assert not any(module.split(".")[0] == "tga" for module in modules)
    elif len(parts) > 2:
        allowed = ROOMS[parts[1]] | {parts[1]} | SHARED
        assert used <= allowed, f"{parts[1]} may not import {sorted(used - allowed)}"
    else:
        assert used <= SHARED, "what all rooms share knows none of them"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_neighbours_and_the_commands_use_the_index(path: Path) -> None:
    used = {".".join(module.split(".")[:2]) for module in imported_modules(path)}
    if not any(module.split(".")[0] == "retrieval_index" for module in used - FOR_ALL):
        return
    assert (
        path.parts[len(ROOT.parts)] == "retrieval_index"
        or "cli" in path.parts
        or name_of(path) in ("tga/data/neighbours.py", "tga/files.py")  # what both do with files is stated there, once
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_config_objects_stop_at_the_commands(path: Path) -> None:
    if name_of(path).startswith("tga/cli/"):
        return
    assert not {module.split(".")[0] for module in imported_modules(path)} & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", [path for path in FILES if "mini" not in path.parts], ids=name_of)
def test_nothing_else_names_the_mini_world(path: Path) -> None:
    named = re.findall(r"tga[./]mini\b.*|\bmini\b.*", path.read_text(encoding="utf-8"))
    assert named == []


def test_the_distribution_lists_every_package() -> None:
    """setup.cfg names the packages one by one, as `tga.conf` lies elsewhere: a forgotten one misses from the wheel."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = settings["options"]["packages"].split()
    on_disk = {".".join(path.relative_to(ROOT).parent.parts) for path in FILES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(on_disk | {"tga.conf"})
    assert {path.parent for path in FILES} == {path.parent for path in FILES if path.name == "__init__.py"}
