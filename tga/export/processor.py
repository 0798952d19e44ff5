"""The processor of an exported model: its chat template, and the settings of its tokenizer (`tga.vlm`)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tga.vlm.pictures import Pictures
from tga.vlm.tokenizer_settings import set_for_generation


def save_processor(processor: Any, chat_template: str | None, directory: Path) -> None:
    """Save a copy of `processor`, with this chat template and set for generation, to `directory`.

    Without a chat template, and where the processor puts pictures before the text by itself (InstructBLIP), prompts
    are texts of the user's own: there the tokenizer goes on adding its special tokens.
    """
    saved = copy.copy(processor)
    saved.tokenizer = copy.deepcopy(processor.tokenizer)
    saved.chat_template = saved.tokenizer.chat_template = chat_template
    spelled_out = chat_template is not None and not puts_picture_first(processor)
    set_for_generation(saved.tokenizer, spelled_out=spelled_out)
    saved.save_pretrained(directory)
    _for_other_readers(directory / "tokenizer_config.json", spelled_out=spelled_out)


def puts_picture_first(processor: Any) -> bool:
    """Whether the processor puts the picture before the text itself; such a one keeps no chat template."""
    return Pictures(processor).family.tokens_attribute is not None


def _for_other_readers(file: Path, *, spelled_out: bool) -> None:
    """Write tokenizer_config.json so that transformers 4 and converters to GGUF read it as transformers 5 does."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name of this class in transformers 5 alone
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # transformers 4 has names for them there
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if spelled_out:  # they read these keys instead of tokenizer.json
        config |= {"add_bos_token": False, "add_eos_token": False}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
