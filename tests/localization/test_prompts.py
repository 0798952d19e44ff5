"""Prompts are those of the evaluation, and toxic words are found by their characters."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_llava
from tga.errors import UserError
from tga.evaluation.prompts import prompt_rows
from tga.evaluation.questions import Question
from tga.localization.prompts import TextBatch, TextPrompt, text_batches, text_prompt
from tga.vlm.families import family_of


def marked(tokenizer: PreTrainedTokenizerFast, message: str, *words: str) -> str:
    """The text of the marked tokens, single blanks between words."""
    prompt = text_prompt(tokenizer, "x", message, words, template="tokenizer")
    tokens = [token for token, toxic in zip(prompt.tokens, prompt.toxic, strict=True) if toxic]
    return " ".join(tokenizer.decode(tokens).split())


def test_tokens_are_those_that_the_evaluation_asks(tokenizer: PreTrainedTokenizerFast) -> None:
    model, processor = tiny_llava()
    texts = [("How many cats are 3?", "chat"), ("A dog. A dog", "plain")]
    questions = [Question(str(at), "", text, form) for at, (text, form) in enumerate(texts)]
    templates = {"chat_template": "tokenizer", "plain_template": "plain"}
    rows = prompt_rows(model, processor, family_of(model), questions, **templates)
    for question, row, template in zip(questions, rows, ("tokenizer", "plain"), strict=True):
        assert list(text_prompt(tokenizer, "", question.prompt, [], template=template).tokens) == row


def test_marked_words(tokenizer: PreTrainedTokenizerFast) -> None:
    assert marked(tokenizer, "Describe the blue chair.", "blue chair") == "blue chair"
    assert marked(tokenizer, "cats and cats, concatsed", "cats") == "cats cats", "as words of their own, each time"
    assert "cats" in marked(tokenizer, "concatsed", "cats"), "inside a word where it stands nowhere else"
    assert marked(tokenizer, "USER: hi", "USER") == "USER", "of the message, not of the template"
    assert marked(tokenizer, "a red cup and a cat", "cup", "cat") == "cup cat"
    assert marked(tokenizer, "nothing") == ""


def test_foreign_words_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="no part of their prompt.*'gun'.*a cat"):
        text_prompt(tokenizer, "x", "a cat", ["gun"], template="tokenizer")


def test_batches_are_padded_on_the_left_and_keep_their_order(
    prompts: list[TextPrompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    batches = list(text_batches(iter(prompts), batch_size=2, tokenizer=tokenizer, device="cpu"))
    assert [batch.ids for batch in batches] == [("a", "b"), ("c",)]
    for prompt, batch, row in ((prompts[0], batches[0], 0), (prompts[1], batches[0], 1), (prompts[2], batches[1], 0)):
        real = batch.attention_mask[row].bool()
        assert batch.input_ids[row, real].tolist() == list(prompt.tokens)
        assert batch.toxic[row, real].tolist() == list(prompt.toxic) and not batch.toxic[row, ~real].any()
        assert bool(real[-1]) and bool((real.int().diff() >= 0).all()), "padding stands before the prompt"


def test_batches_are_made_as_they_are_taken(prompts: list[TextPrompt], tokenizer: PreTrainedTokenizerFast) -> None:
    taken: list[str] = []

    def source():
        for prompt in prompts:
            taken.append(prompt.id)
            yield prompt

    batches = text_batches(source(), batch_size=1, tokenizer=tokenizer, device="cpu")
    first: TextBatch = next(batches)
    assert taken == ["a"] and first.toxic.dtype == torch.bool
