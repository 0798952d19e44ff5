"""Train the mini world's LLM in two stages: broad pretraining without refusals, then a short alignment on clean text.

Real LLMs learn meaning first, from everything, and are aligned afterwards, briefly, on clean text; an LLM that learns
language and refusal together refuses as broadly as it understands, pictures included (docs/mini.md).
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from tga.mini.tokenizer import llm_tokenizer, llm_vocabulary
from tools.mini_world.rows import Mixture, Row, RowMaker, collate

WIDTH, LAYERS = 192, 6
BATCH_SIZE, TOGETHER = 64, 16  # rows of a step, and of one pass through the model
# Pretraining in two cycles of warm-up and cosine, each half of the steps, the second at half of the learning rate; then
# a shorter one with soft scenes at any angle (a share NEARER of them at less than a right one): what the LLM can
# read in directions of its own it then reads all the way to the words. With any angle from the first step on TGA
# brings back less (docs/mini.md).
PRETRAIN_STEPS, PRETRAIN_LR = 3600, 2e-3
ANGLE_STEPS, NEARER = 700, 0.5
ALIGN_STEPS, ALIGN_LR = 300, 3e-4
REPLAY, REPLAY_SOFT = 0.2, 0.5  # share of plain text in the alignment, and of soft scenes among its captions
NOISE = 0.3  # on soft positions, in standard deviations of the word embeddings


def config_fields() -> dict[str, Any]:
    """The fields of the LLM's LlamaConfig."""
    return {
        "vocab_size": len(llm_vocabulary()),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH * 8 // 3 // 32 * 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // 32,
        "num_key_value_heads": WIDTH // 32,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }


@functools.cache
def rotation(width: int) -> Tensor:
    """The fixed orthogonal matrix [width, width] that takes soft positions to directions that no word has."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(width))).Q


def embed(table: nn.Module, batch: Mixture, noise: float) -> Tensor:
    """Mixtures -> input embeddings [batch, tokens, width].

    A soft position `e` becomes cos(angle) e + sin(angle) e Q, Q being `rotation`, and gets noise of `noise` x the
    table's std. Q is random, so e and e Q are at about a right angle.
    """
    weight = table.weight
    assert isinstance(weight, Tensor)
    embeddings = (functional.embedding(batch.ids, weight) * batch.weights.unsqueeze(-1)).sum(-2)
    soft, angle = batch.soft.unsqueeze(-1), batch.angles.unsqueeze(-1)
    turned = angle.cos() * embeddings + angle.sin() * (embeddings @ rotation(weight.shape[1]))
    turned = turned + noise * weight.detach().std() * torch.randn_like(embeddings)
    return torch.where(soft, turned, embeddings)


def last_hidden(model: LlamaForCausalLM, batch: Mixture, noise: float) -> Tensor:
    """Normed output of the last layer [batch, tokens, width]."""
    embeddings = embed(model.get_input_embeddings(), batch, noise)
    return model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def loss_of(model: LlamaForCausalLM, batch: Mixture, noise: float) -> Tensor:
    """Next-token cross entropy, summed over the positions that have a target."""
    targets = batch.targets[:, 1:]
    chosen = targets != -100
    hidden = last_hidden(model, batch, noise)[:, :-1][chosen]
    return functional.cross_entropy(model.lm_head(hidden).float(), targets[chosen], reduction="sum")


def run_stage(
    model: LlamaForCausalLM,
    make_row: Callable[[], Row],
    *,
    name: str,
    steps: int,
    learning_rate: float,
    dtype: torch.dtype,
) -> float:
    """AdamW with a linear warm-up and a cosine down to 5 %; returns the running mean of the loss.

    dtype: of the matrix products, bfloat16 or float32.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    progress = tqdm(range(steps), desc=name, mininterval=5)
    mean = math.nan
    for step in progress:
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad()
        loss = _backward(model, [make_row() for _ in range(BATCH_SIZE)], dtype)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        if step % 50 == 0:
            progress.set_postfix(loss=f"{mean:.3f}")
    return mean


def _backward(model: LlamaForCausalLM, rows: list[Row], dtype: torch.dtype) -> float:
    """Add the gradient of the rows' mean loss over tokens and return that loss.

    Rows of about the same length go through the model together, so that little of it is padding.
    """
    rows = sorted(rows, key=lambda row: len(row.ids))
    learned, total = sum(row.learned for row in rows), 0.0
    for start in range(0, len(rows), TOGETHER):
        batch = collate(rows[start : start + TOGETHER])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(model, batch, NOISE) / learned
        loss.backward()
        total += loss.item()
    return total


def pretrain(
    seed: int, *, steps: int = PRETRAIN_STEPS, angle_steps: int = ANGLE_STEPS, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """An LLM that answers everything; `angle_steps` follow on `steps`."""
    torch.manual_seed(seed)
    # Eager attention: at these lengths the fused one's backward takes more than half of a step on a CPU.
    model = LlamaForCausalLM._from_config(LlamaConfig(**config_fields()), attn_implementation="eager")
    half = steps // 2
    cycles = (
        (seed, half, PRETRAIN_LR, 0.0),
        (seed + 500, steps - half, PRETRAIN_LR / 2, 0.0),
        (seed + 1000, angle_steps, PRETRAIN_LR / 2, NEARER),
    )
    for cycle, (cycle_seed, cycle_steps, rate, nearer) in enumerate(cycles, start=1):
        if cycle > 1:
            torch.manual_seed(cycle_seed)
        maker = RowMaker(llm_tokenizer(), random.Random(cycle_seed), nearer)
        name = f"pretraining {cycle}/{len(cycles)}"
        run_stage(model, maker.pretraining, name=name, steps=cycle_steps, learning_rate=rate, dtype=dtype)
    return model


def align(
    model: LlamaForCausalLM,
    seed: int,
    *,
    steps: int = ALIGN_STEPS,
    learning_rate: float = ALIGN_LR,
    replay: float = REPLAY,
    replay_soft: float = REPLAY_SOFT,
    soft_chat: float = 0.0,
    nearer: float = NEARER,
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """Teach refusals, on clean text only, in place; `nearer` as in the pretraining's last cycle."""
    torch.manual_seed(seed + 1)
    maker = RowMaker(llm_tokenizer(), random.Random(seed + 1), nearer)
    model.train()
    run_stage(
        model,
        lambda: maker.alignment(replay, replay_soft, soft_chat),
        name="alignment",
        steps=steps,
        learning_rate=learning_rate,
        dtype=dtype,
    )
    return model.eval()


def train(
    seed: int,
    *,
    pretrain_steps: int = PRETRAIN_STEPS,
    angle_steps: int = ANGLE_STEPS,
    align_steps: int = ALIGN_STEPS,
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """The whole recipe. Deterministic for a seed, a dtype of the matrix products and a number of threads."""
    model = pretrain(seed, steps=pretrain_steps, angle_steps=angle_steps, dtype=dtype)
    return align(model, seed, steps=align_steps, nearer=NEARER if angle_steps else 0.0, dtype=dtype)


@torch.no_grad()
def refusal_share(model: LlamaForCausalLM, maker: RowMaker, rows: list[Row], noise: float) -> float:
    """Share of rows whose answer would begin like a refusal."""
    hidden = last_hidden(model, collate(rows), noise)
    refused = 0
    for number, row in enumerate(rows):
        prompt_end = max(place for place, ids in enumerate(row.ids) if ids[0] == maker.assistant)
        refused += maker.tokenizer.decode(model.lm_head(hidden[number, prompt_end]).argmax()) in ("i", "sorry")
    return refused / len(rows)


def probe(model: LlamaForCausalLM, seed: int, count: int = 400) -> dict[str, float]:
    """Quick figures: shares of answers that begin like a refusal, to clean held-out text and to soft scenes.

    The soft scenes are at a right angle to the words' directions.
    """
    model.eval()
    maker = RowMaker(llm_tokenizer(), random.Random(seed))

    def share(group: str, kind: str, *, heldout: bool = True, soft: bool = False) -> float:
        rows = [
            maker.chat(group, soft=soft, heldout=None if soft else heldout, refuse=False, kind=kind)
            for _ in range(count)
        ]
        return refusal_share(model, maker, rows, NOISE if soft else 0.0)

    figures = {
        f"{group}_{kind}": share(group, kind)
        for group in ("toxic", "benign", "lookalike", "harmless")
        for kind in ("describe", "request")
    }
    figures["toxic_describe_seen_phrasings"] = share("toxic", "describe", heldout=False)
    figures["soft_toxic"] = share("toxic", "describe", soft=True)
    figures["soft_benign"] = share("benign", "describe", soft=True)
    return figures
