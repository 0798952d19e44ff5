"""tga-train at located layers: the numbers of the file reach the loss, and layers of another LLM are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_train import TINY, call, world  # noqa: F401
from tests.tiny import tiny_llm
from tga.alignment.located import LocatedLayers, write_located_layers
from tga.training.checkpoint import latest_checkpoint, read_checkpoint
from tga.vlm.language_model import LANGUAGE_MODEL, identify_language_model

ARGUMENTS = [*TINY, "alignment=tga_located", "alignment.retrieved=none", "export=null", "training.max_steps=1"]


def write_layers(path: Path, *layers: int, depth: int = 3) -> None:
    model = identify_language_model(tiny_llm(layers=depth), LANGUAGE_MODEL)
    write_located_layers(path, LocatedLayers(layers, model, {"variant": "log_ratio"}))


@pytest.mark.parametrize(
    "chosen", [["alignment=tga_located"], ["alignment=tga_paper", "alignment.layers=located"]], ids=["own", "other"]
)
def test_the_layers_of_the_file_are_used(chosen: list[str], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    write_layers(world / "layers.json", 1, 3)
    plus = "" if chosen == ["alignment=tga_located"] else "+"
    code = call(monkeypatch, world, *ARGUMENTS, *chosen, f"{plus}alignment.layers_file=layers.json")
    assert code == 0
    trained = read_checkpoint(latest_checkpoint(world / "run" / "checkpoints"))
    assert trained.hyper_parameters["alignment"]["layers"] == [1, 3]
    assert trained.hyper_parameters["alignment"]["layers_file"] == "layers.json"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["without the file", "tga-locate", "alignment.layers_file=PATH", "alignment.layers=[0,1,2]"]),
        (["alignment.layers_file=none.json"], ["no file of located layers", "none.json"]),
        (["alignment.layers_file=train.json"], ["not a file of located layers", "train.json"]),
        (["alignment.layers=[1]", "alignment.layers_file=layers.json"], ["other layers beside it", "[1]"]),
        (["alignment.layers_file=layers.json"], ["another language model", "2 layers of width 32", "3 layers of"]),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    parts: list[str],
    world: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_layers(world / "layers.json", 1, depth=2)
    assert call(monkeypatch, world, *ARGUMENTS, *arguments) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("Error: ") and all(part in message for part in parts), message
    assert not (world / "run" / "checkpoints").exists()
