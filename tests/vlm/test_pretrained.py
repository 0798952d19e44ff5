"""Loading from transformers: one message, no bar for the weights, and every other bar as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from tests.tiny import tiny_llm, write_tiny_parts
from tga.errors import UserError
from tga.vlm.assemble import assemble_llava
from tga.vlm.pretrained import stored_dtype, without_weights_bar


def test_loading_a_model_draws_no_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    llm, vision = write_tiny_parts(tmp_path)
    capfd.readouterr()
    AutoModelForCausalLM.from_pretrained(llm)
    assert "Loading weights" in capfd.readouterr().err, "what others load is left alone"
    assemble_llava(str(llm), str(vision))
    assert capfd.readouterr().err == ""
    AutoModelForCausalLM.from_pretrained(llm)
    assert "Loading weights" in capfd.readouterr().err


def test_other_bars_and_the_hook_of_others_stay(capfd: pytest.CaptureFixture[str]) -> None:
    asked = []

    def counted(factory, args, kwargs):
        asked.append(kwargs["desc"])
        return factory(*args, **kwargs)

    before = logging.set_tqdm_hook(counted)
    try:
        with without_weights_bar():
            list(logging.tqdm(range(2), desc="Downloading"))
            list(logging.tqdm(range(2), desc="Loading weights"))
        assert logging.set_tqdm_hook(before) is counted
    finally:
        logging.set_tqdm_hook(before)
    shown = capfd.readouterr().err
    assert "Downloading" in shown and "Loading weights" not in shown
    assert asked == ["Downloading", "Loading weights"]


def test_the_stored_dtype_is_that_of_the_config(tmp_path: Path) -> None:
    tiny_llm().bfloat16().save_pretrained(tmp_path / "half")
    assert stored_dtype(str(tmp_path / "half"), remedy="model.llm=PATH") == torch.bfloat16
    with pytest.raises(UserError, match=r"there is no such directory.*model\.llm=PATH"):
        stored_dtype(str(tmp_path / "gone" / "llm"), remedy="model.llm=PATH")
