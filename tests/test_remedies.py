"""What an error tells the user to set can be set: every `key=` of a remedy is a key of some command's config."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for name in ("tga", "retrieval_index") for path in (ROOT / name).rglob("*.py"))
COMMANDS = ("build_index", "train", "evaluate", "steer", "export", "compare", "locate")
GROUPS = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*") if path.is_dir()}
KEY = re.compile(r"(?<![\w.(-])([a-z_]+(?:\.[a-z_0-9]+)*)=")
LOCATED = ["alignment=tga_located"]
NOT_OURS = {"use_fast"}  # an argument of transformers


def keys_of(config: object, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield f"{prefix}{key}"
            yield from keys_of(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every key of every command, and the config groups."""
    found = set(GROUPS)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        for command in COMMANDS:
            found.update(keys_of(OmegaConf.to_container(compose(command), resolve=False)))
        for options in (["prepare=mini", "alignment=tga_regap"], ["data=webdataset"], ["data=parquet"], LOCATED):
            found.update(keys_of(OmegaConf.to_container(compose("train", overrides=options), resolve=False)))
    return found


def texts(node: ast.AST) -> Iterator[str]:
    """Every literal text below a node; the filled-in parts of an f-string are left out."""
    yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def named_keys(path: Path) -> set[str]:
    """Keys in remedies, be they arguments, defaults of arguments or variables of that name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "remedy":
            said = texts(node.value)
        elif isinstance(node, ast.arguments):
            defaults = zip(node.kwonlyargs, node.kw_defaults, strict=True)
            said = (text for arg, default in defaults if arg.arg == "remedy" and default for text in texts(default))
        elif isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "remedy" for t in node.targets):
            said = texts(node.value)
        else:
            continue
        found.update(key for text in said for key in KEY.findall(text))
    return found - NOT_OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_remedies_name_keys_that_exist(path: Path, known: set[str]) -> None:
    assert named_keys(path) <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_error_of_a_user_says_what_to_do(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    errors = [call for call in calls if getattr(call.func, "id", "") in ("UserError", "RetrievalError")]
    without = [call.lineno for call in errors if "remedy" not in {keyword.arg for keyword in call.keywords}]
    assert without == []


def test_keys_are_found_in_remedies() -> None:
    assert {"model.vlm", "model"} <= named_keys(ROOT / "tga/vlm/assemble.py")
    assert {"model.llm", "model.vision_tower"} <= named_keys(ROOT / "tga/vlm/parts.py")
    assert named_keys(ROOT / "tga/vlm/projector_init.py") >= {"model.calibration"}
