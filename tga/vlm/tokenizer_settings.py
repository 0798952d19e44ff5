"""How a tokenizer has to be set, so that all who use a model get the prompts of its training.

Answers are generated, and a batch of prompts is continued at its right end: padding belongs on the left. The training
pads its own batches and does not ask the tokenizer.

Chat templates spell out the beginning-of-sequence token, as every prompt of the training does. A tokenizer that adds
one of its own makes two of them wherever a rendered prompt is tokenized with its defaults; one that adds none gives the
ids of the training to `apply_chat_template` and to whoever tokenizes what it rendered.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import processors


def set_for_generation(tokenizer: Any, *, spelled_out: bool) -> None:
    """Change `tokenizer` in place: it can pad, on the left, also when it is saved and loaded again.

    spelled_out: prompts come from a chat template, with their special tokens; the tokenizer shall add none.
    """
    ensure_padding(tokenizer)
    # Only what a tokenizer was made with is saved, an attribute alone is not.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    if spelled_out and tokenizer.is_fast and adds_special_tokens(tokenizer):
        _add_no_special_tokens(tokenizer.backend_tokenizer)


def ensure_padding(tokenizer: Any) -> None:
    """Give a tokenizer that cannot pad a padding token which it knows already."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def adds_special_tokens(tokenizer: Any) -> bool:
    """Whether a text tokenized with the tokenizer's defaults gets special tokens around it."""
    return bool(tokenizer.num_special_tokens_to_add(pair=False))


def _add_no_special_tokens(backend: Any) -> None:
    state = json.loads(backend.post_processor.__getstate__())
    for step in state.get("processors", [state]):
        if step["type"] == "ByteLevel":  # minds the characters of tokens, and adds none
            backend.post_processor = processors.ByteLevel(trim_offsets=step["trim_offsets"])
            return
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[])
