"""The processor of an exported model: its chat template, and the settings of its tokenizer (`tga.vlm`)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tga.vlm.pictures import Pictures
from tga.vlm.tokenizer_settings import set_for_generation


def save_processor(processor: Any, chat_template: str | None, directory: Path) -> Any:
    """Save a copy of `processor`, with this chat template and set for generation, to `directory`; returns the copy.

    Without a chat template, and where the processor puts pictures before the text by itself (InstructBLIP), prompts
    are texts of the user's own: there the tokenizer goes on adding its special tokens.
    """
    saved = copy.copy(processor)
    saved.tokenizer = copy.deepcopy(processor.tokenizer)
    saved.chat_template = saved.tokenizer.chat_template = chat_template
    spelled_out = chat_template is not None and not puts_picture_first(processor)
    set_for_generation(saved.tokenizer, spelled_out=spelled_out)
    saved.save_pretrained(directory)
    if spelled_out:
        _add_nothing(directory / "tokenizer_config.json")
    return saved


def puts_picture_first(processor: Any) -> bool:
    """Whether the processor puts the picture before the text itself; such a one keeps no chat template."""
    return Pictures(processor).family.tokens_attribute is not None


def _add_nothing(file: Path) -> None:
    """Say that no special tokens are added where transformers 4 and converters to GGUF read it."""
    config = json.loads(file.read_text(encoding="utf-8")) | {"add_bos_token": False, "add_eos_token": False}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
