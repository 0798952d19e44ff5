"""Liger's kernels: asked for by its own function, without its cross entropy, and refused where it is not."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from tests.tiny import tiny_llava
from tga.errors import UserError
from tga.training.prepare import prepare_model
from tga.training.settings import TrainSettings
from tga.vlm.families import family_of

NAME = "liger_kernel.transformers.monkey_patch"


def liger(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> list[dict[str, Any]]:
    """A stand-in of liger-kernel (which needs a GPU) that knows some model types; what it is called with."""
    calls: list[dict[str, Any]] = []
    module = ModuleType(NAME)
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(kinds)  # type: ignore[attr-defined]
    module._apply_liger_kernel_to_instance = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, NAME, module)
    return calls


def prepare(**settings: Any) -> Any:
    model, _ = tiny_llava()
    prepare_model(model, family_of(model), TrainSettings(**settings), ["projector"], None)
    return model


def test_the_decoder_gets_its_kernels_and_no_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = liger(monkeypatch, "llama", "qwen2")
    model = prepare(liger_kernel=True)
    (call,) = calls
    assert call.pop("model") is model.model.language_model
    assert call == {"cross_entropy": False, "fused_linear_cross_entropy": False}
    prepare()
    assert len(calls) == 1


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    liger(monkeypatch, "qwen2")
    with pytest.raises(UserError, match="llama.*qwen2"):
        prepare(liger_kernel=True)
    monkeypatch.setitem(sys.modules, NAME, None)
    with pytest.raises(UserError, match="pip install liger-kernel"):
        prepare(liger_kernel=True)
