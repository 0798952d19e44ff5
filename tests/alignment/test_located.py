"""layers.json: what is written is read, and layers of another language model are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tga.alignment.located import LocatedLayers, check_same_model, read_located_layers, write_located_layers
from tga.errors import UserError
from tga.vlm.language_model import LanguageModelId

LLM = LanguageModelId(32, 4096, "0123456789abcdef")


def test_round_trip(tmp_path: Path) -> None:
    located = LocatedLayers((10, 11, 12), LLM, {"variant": "log_ratio", "band": {"min": 10, "max": 12}})
    write_located_layers(tmp_path / "layers.json", located)
    assert read_located_layers(tmp_path / "layers.json") == located
    content = json.loads((tmp_path / "layers.json").read_text())
    assert content["layers"] == [10, 11, 12] and content["language_model"]["num_layers"] == 32
    assert content["band"]["min"] == 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"layers": [1]}',
        '{"layers": ["x"], "language_model": {}}',
        '{"layers": [1], "language_model": {"name": 1}}',
    ],
)
def test_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text(text)
    with pytest.raises(UserError, match=r"not a file of located layers.*alignment.layers_file"):
        read_located_layers(tmp_path / "layers.json")


def test_no_file_and_no_layer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file of located layers"):
        read_located_layers(tmp_path / "layers.json")
    write_located_layers(tmp_path / "layers.json", LocatedLayers((), LLM, {}))
    with pytest.raises(UserError, match=r"No layer was located.*alignment.layers=\[0,1,2\]"):
        read_located_layers(tmp_path / "layers.json")


@pytest.mark.parametrize(
    "other",
    [
        LanguageModelId(28, 4096, LLM.fingerprint),
        LanguageModelId(32, 2048, LLM.fingerprint),
        LanguageModelId(32, 4096, "f" * 16),
    ],
)
def test_another_language_model_is_refused(other: LanguageModelId) -> None:
    located = LocatedLayers((1,), LLM, {})
    check_same_model(located, LLM, "layers.json")
    message = "located in another language model.*layers.json: 32 layers of width 4096, weights 0123456789abcdef"
    with pytest.raises(UserError, match=f"{message}.*{other.num_layers} layers of width {other.width}"):
        check_same_model(located, other, "layers.json")
