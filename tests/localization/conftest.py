"""A tiny model of two decoder layers, its tokenizer, and prompts with marked words."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import tiny_llm, tiny_tokenizer
from tga.localization.prompts import TextBatch, TextPrompt, text_batches, text_prompt

MESSAGES = [
    ("a", "Describe the blue chair.", ["blue chair"]),
    ("b", "How many cats sit on the table? Two cats?", ["cats"]),
    ("c", "Hi dog", ["dog"]),
]


@pytest.fixture
def llm() -> LlamaForCausalLM:
    """Two random layers with eager attention; a language model alone."""
    return tiny_llm(layers=2)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[TextPrompt]:
    """Three prompts of different lengths."""
    return [text_prompt(tokenizer, name, message, words, template="tokenizer") for name, message, words in MESSAGES]


@pytest.fixture(scope="session")
def batch(prompts: list[TextPrompt], tokenizer: PreTrainedTokenizerFast) -> TextBatch:
    """The three prompts, padded on the left."""
    (made,) = text_batches(prompts, batch_size=8, tokenizer=tokenizer, device="cpu")
    return made
