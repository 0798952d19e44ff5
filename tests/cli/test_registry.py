"""A config names what is registered; nothing that it spells is imported or called, however it is quoted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.alignment.regap import ReGap
from tga.alignment.tga import TGA
from tga.cli.common import plain, prepare
from tga.cli.train import main
from tga.cli.train_config import build_objectives
from tga.errors import UserError
from tga.registry import OBJECTIVES, WORLDS, made, names, registered

OWN_OBJECTIVE = """
from tga.alignment.tga import TGA

class Louder(TGA):
    def losses(self, spans, progress):
        return {"louder_" + name: 2 * value for name, value in super().losses(spans, progress).items()}
"""


def test_everything_registered_loads() -> None:
    assert names(OBJECTIVES) == ["regap", "tga"] and names(WORLDS) == ["mini"]
    for group in (OBJECTIVES, WORLDS):
        assert all(callable(registered(group, name, key="k")) for name in names(group))


def test_objectives_are_made_by_name_with_their_keys() -> None:
    config = {"a": {"kind": "tga", "layers": "all", "form": "exp"}, "b": {"kind": "regap", "weight": 0.5}}
    first, second = build_objectives({"objectives": config}, 3)
    assert isinstance(first, TGA) and first.layers == (1, 2, 3) and first.form == "exp"
    assert isinstance(second, ReGap) and second.alpha == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "tgb"}, "nothing that is registered.*tgb.*Allowed: regap, tga"),
        ({"kind": 3}, "nothing that is registered"),
        ({"kind": ["tga"]}, "nothing that is registered"),
        ({"kind": "os:system"}, "may not have code imported.*os:system.*command line"),
        ({"_target_": "tga.alignment.tga.TGA"}, "does not say which one.*kind"),
        ("tga", "does not say which one"),
        ({"kind": "tga", "layers": [1], "volume": 2}, "keys it takes.*volume.*Allowed:.*pair_weight"),
        ({"kind": "tga", "layers": [1], "_target_": "os.system"}, "keys it takes.*_target_"),
    ],
)
def test_what_is_not_registered_is_refused(settings: object, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        build_objectives({"objectives": {"one": settings}}, 3)


def test_a_path_is_imported_for_those_who_named_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "louder_module.py").write_text(OWN_OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    path = "louder_module:Louder"
    with pytest.raises(UserError, match="may not have code imported"):
        registered(OBJECTIVES, path, key="k", own=["louder_module:Other"])
    assert "louder_module" not in sys.modules
    found = registered(OBJECTIVES, path, key="k", own=[path])
    assert made(found, {"layers": [1]}, key="k").layers == (1,)
    for wrong in ("louder_module:Quieter", "no_such_module:X", ":X", "louder_module:"):
        with pytest.raises(UserError, match="Nothing can be imported|cannot be called"):
            registered(OBJECTIVES, wrong, key="k", own=[wrong])


class Executed:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides of a training of one step."""
    directory = tmp_path_factory.mktemp("registry")
    llm, tower = write_tiny_parts(directory)
    data, images = write_tiny_llava_json(directory)
    return [
        f"model.llm={llm}", f"model.vision_tower={tower}", f"data.json={data}", f"data.image_root={images}",
        "data.captions=null", "evaluation=none", "export=null", "training.max_steps=1", "training.batch_size=2",
        "training.log_every=1", "training.accelerator=cpu",
    ]  # fmt: skip


def train(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    """The exit code of tga-train, called in `directory`."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-train", *arguments, f"run_dir={directory / 'run'}"])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture
def pickled(tmp_path: Path) -> tuple[str, Path]:
    """A call that unpickles a file, as an interpolation, and the file that appears where it is made."""
    executed = tmp_path / "executed"
    torch.save(Executed(executed), tmp_path / "pickle.pt")
    call = f"{{_target_: torch.load, f: {tmp_path / 'pickle.pt'}, weights_only: false}}"
    return f"${{oc.create:{call}}}", executed


@pytest.mark.parametrize("quotes", range(5))
@pytest.mark.parametrize("key", ["pairing", "kind", "_target_", "weight"])
def test_a_quoted_interpolation_in_an_objective_executes_nothing(
    pickled: tuple[str, Path], quotes: int, key: str
) -> None:
    value, executed = "\\" * quotes + pickled[0], pickled[1]
    config = OmegaConf.create({"objectives": {"one": {"kind": "regap", key: value}}})
    with pytest.raises((UserError, OmegaConfBaseException)):
        build_objectives(plain(config), 3)
    assert not executed.exists()


@pytest.mark.parametrize("quotes", range(5))
@pytest.mark.parametrize("key", ["world", "_target_"])
def test_nor_in_what_is_prepared(pickled: tuple[str, Path], tmp_path: Path, quotes: int, key: str) -> None:
    value, executed = "\\" * quotes + pickled[0], pickled[1]
    group = {"world": "mini", "root": str(tmp_path / "world"), "train_pictures": 0, "captions": 0, key: value}
    with pytest.raises((UserError, OmegaConfBaseException)):
        prepare(OmegaConf.create({"prepare": group}))
    assert not executed.exists()


def test_an_experiment_with_a_twice_quoted_call_is_refused(
    tiny: list[str],
    pickled: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    objective = f"{{kind: regap, weight: '\\\\{pickled[0]}'}}"
    (folder / "evil.yaml").write_text(f"# @package _global_\nalignment:\n  objectives:\n    one: {objective}\n")
    assert train(monkeypatch, tmp_path, f"--config-dir={folder.parent}", "+experiment=evil", *tiny) == 1
    assert "Error: " in capsys.readouterr().err and not pickled[1].exists()


def test_an_own_objective_trains_where_its_user_names_it_and_not_where_a_file_does(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "louder_module.py").write_text(OWN_OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    one = "{kind: 'louder_module:Louder', layers: [1]}"
    (folder / "own.yaml").write_text(f"# @package _global_\nalignment:\n  objectives:\n    one: {one}\n")
    assert train(monkeypatch, tmp_path, f"--config-dir={folder.parent}", "+experiment=own", *tiny) == 1
    assert "may not have code imported by its path" in capsys.readouterr().err
    assert train(monkeypatch, tmp_path, "alignment=baseline", *tiny, f"+alignment.objectives.one={one}") == 0
    assert "louder_" in (tmp_path / "run" / "metrics.jsonl").read_text()
