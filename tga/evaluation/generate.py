"""Greedy answers in batches: left padding, a KV cache, and rows that leave the batch when they have ended.

The prompt runs through the whole VLM when it holds pictures and through the language model alone when it does not;
every later token runs through the language model alone, for the pictures are in the cache by then; a model that counts
positions its own way after pictures (Qwen2.5-VL) says by how much they are shifted. Questions of
similar length share a batch. The answers are those of `model.generate(do_sample=False)` (tested), in the order of the
questions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from retrieval_index.visible_text import visible
from tga.evaluation.kept_answers import AnswersToQuestions
from tga.evaluation.prompts import PromptBatch, prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.vlm.families import Family, component
from tga.vlm.kv_cache import cache_argument
from tga.vlm.modes import evaluating


class Steered(Protocol):
    """What a corrected model must hear of a batch."""

    def keep(self, rows: Tensor) -> None:
        """Rows [kept] int64 of the batch that go on; the others have ended."""


# What corrects the model while it answers a batch of questions with pictures.
Steer = Callable[[Sequence[Question]], AbstractContextManager[Steered]]


def answer_questions(
    model: Any,
    processor: Any,
    family: Family,
    questions: Sequence[Question],
    *,
    chat_template: str = "tokenizer",
    plain_template: str = "plain",
    batch_size: int = 100,
    max_new_tokens: int = 48,
    description: str = "answering",
    show_progress: bool = True,
    steer: Steer | None = None,
    kept: AnswersToQuestions | None = None,
) -> list[str]:
    """Greedy answers to the questions, one string each, without special tokens and outer blanks.

    chat_template, plain_template: names of `tga.vlm.templates` for questions of format "chat" and "plain".
    batch_size: pictures (or text questions) that are processed at once. Deterministic for a given batch size.
    steer: opened around each batch of questions with pictures. What it corrects is the shift by a picture, so questions
    in words alone are answered by the model as it is.
    kept: answers of an evaluation that was stopped, which are not asked again; every batch is added to them.
    """
    templates = {"chat_template": chat_template, "plain_template": plain_template}
    answers = [""] * len(questions)
    ends = end_token_ids(model, processor)
    with (
        evaluating(model),
        tqdm(total=len(questions), desc=visible(description), unit="q", disable=not show_progress) as bar,
    ):
        prompts = prompt_rows(model, processor, family, questions, **templates)
        for rows in _batches(questions, prompts, batch_size):
            if kept is not None and kept.known.keys() >= set(rows):
                for row in rows:
                    answers[row] = kept.known[row]
                bar.update(len(rows))
                continue
            pictures = [picture for row in rows if (picture := questions[row].image) is not None]
            chosen = [prompts[row] for row in rows]
            batch = prompt_batch(model, processor, family, chosen, pictures, padding_side="left")
            correcting = steer([questions[row] for row in rows]) if steer and pictures else nullcontext()
            with correcting as steered:
                tokens = greedy_tokens(
                    model, family, batch, end_ids=ends, max_new_tokens=max_new_tokens, steered=steered
                )
            decoded = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for row, answer in zip(rows, decoded, strict=True):
                answers[row] = answer.strip()
            if kept is not None:
                kept.keep({row: answers[row] for row in rows})
            bar.update(len(rows))
    return answers


@torch.inference_mode()
def greedy_tokens(
    model: Any,
    family: Family,
    batch: PromptBatch,
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
    steered: Steered | None = None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, without the end token; at most `max_new_tokens` tokens.

    batch: left-padded prompts [batch, tokens] with the pictures of all rows, or without any.
    steered: is told which rows go on.
    """
    step = _next_logits(model, family)
    ends = torch.tensor(list(end_ids), device=batch.input_ids.device)
    answers: list[list[int]] = [[] for _ in range(len(batch.input_ids))]
    mask = batch.attention_mask
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config.get_text_config())
    logits, shift = step(batch.model_inputs(), positions, cache)
    rows = torch.arange(len(answers), device=mask.device)
    last = positions[:, -1:] + shift
    for produced in range(1, max_new_tokens + 1):
        token = logits.argmax(dim=-1)
        going = ~torch.isin(token, ends)
        for row, value in zip(rows[going].tolist(), token[going].tolist(), strict=True):
            answers[row].append(value)
        if produced == max_new_tokens or not bool(going.any()):
            break
        if not bool(going.all()):  # rows that have ended leave the batch and its cache
            kept = going.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            if steered is not None:
                steered.keep(kept)
            token, mask, rows, last = token[kept], mask[kept], rows[kept], last[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        last = last + 1
        logits, _ = step({"input_ids": token[:, None], "attention_mask": mask}, last, cache)
    return answers


def end_token_ids(model: Any, processor: Any) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's and those of the model's generation config, sorted."""
    ids = {processor.tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids.update(configured if isinstance(configured, (list, tuple)) else [configured])
    return tuple(sorted(identity for identity in ids if identity is not None))


Step = Callable[[dict[str, Tensor], Tensor, DynamicCache], tuple[Tensor, Tensor | int]]


def _next_logits(model: Any, family: Family) -> Step:
    """A function to the logits [batch, vocabulary] of the next token, and what a prompt with pictures adds to the
    positions of later tokens ([batch, 1] or 0); only the last position meets the head.
    """
    decoder, head = component(model, family.language_model), component(model, family.lm_head)

    def step(inputs: dict[str, Tensor], positions: Tensor, cache: DynamicCache) -> tuple[Tensor, Tensor | int]:
        given: dict[str, Any] = {**inputs, cache_argument(): cache, "use_cache": True}
        if "pixel_values" not in inputs:
            return head(decoder(position_ids=positions, **given).last_hidden_state[:, -1]), 0
        if family.rope_deltas is None:
            return model(position_ids=positions, logits_to_keep=1, **given).logits[:, -1], 0
        logits = model(logits_to_keep=1, **given).logits[:, -1]
        return logits, operator.attrgetter(family.rope_deltas)(model)

    return step


def _batches(questions: Sequence[Question], prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Row numbers of batches that hold either pictures only or none, of similar prompt length."""
    for pictured in (False, True):
        rows = [row for row, question in enumerate(questions) if (question.image is not None) is pictured]
        rows.sort(key=lambda row: (len(prompts[row]), row))
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
