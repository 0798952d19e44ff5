"""Train the mini world's LLM: broad pretraining without refusals, then a short alignment on clean text, both twice.

Real LLMs learn meaning first, from everything, and are aligned afterwards, briefly, on clean text; an LLM that learns
language and refusal together refuses as broadly as it understands, pictures included (docs/mini.md). How far the
refusal spreads to soft scenes is a matter of the seed all the same: `align_narrowly` bounds it.
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
# Pretraining in two cycles of warm-up and cosine, each half of the steps, the second at half of the learning rate, and
# an alignment. Then a shorter cycle, in which the refusals are unlearned, with soft scenes at any angle (a share NEARER
# of them at less than a right one): what the LLM can read in directions of its own it then reads all the way to the
# words. With any angle from the first step on TGA brings back less (docs/mini.md). The last alignment follows.
PRETRAIN_STEPS, PRETRAIN_LR = 3600, 2e-3
ANGLE_STEPS, NEARER = 700, 0.5
ALIGN_STEPS, ALIGN_LR = 300, 3e-4
REPLAY, REPLAY_SOFT = 0.2, 0.5  # share of plain text in the alignment, and of soft scenes among its captions
# Shares of answered chat about benign soft scenes in the last alignment: the first one with which the LLM alone refuses
# no more of the toxic ones, by their angle to the words' directions in degrees, than this.
SOFT_CHATS, MOST_SOFT_TOXIC = (0.0, 0.05, 0.3), {90: 0.6, 60: 0.7}
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


def pretrain(seed: int, *, steps: int = PRETRAIN_STEPS, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """An LLM that answers everything, after two cycles."""
    torch.manual_seed(seed)
    # Eager attention: at these lengths the fused one's backward takes more than half of a step on a CPU.
    model = LlamaForCausalLM._from_config(LlamaConfig(**config_fields()), attn_implementation="eager")
    half = steps // 2
    _cycle(model, seed, "pretraining 1/3", steps=half, learning_rate=PRETRAIN_LR, nearer=0.0, dtype=dtype)
    torch.manual_seed(seed + 500)
    rate = PRETRAIN_LR / 2
    _cycle(model, seed + 500, "pretraining 2/3", steps=steps - half, learning_rate=rate, nearer=0.0, dtype=dtype)
    return model


def pretrain_on(
    model: LlamaForCausalLM, seed: int, *, steps: int = ANGLE_STEPS, dtype: torch.dtype = torch.float32
) -> None:
    """A third cycle, in place, with soft scenes at any angle; nothing is refused behind it."""
    torch.manual_seed(seed + 1000)
    rate = PRETRAIN_LR / 2
    _cycle(model, seed + 1000, "pretraining 3/3", steps=steps, learning_rate=rate, nearer=NEARER, dtype=dtype)


def _cycle(
    model: LlamaForCausalLM,
    seed: int,
    name: str,
    *,
    steps: int,
    learning_rate: float,
    nearer: float,
    dtype: torch.dtype,
) -> None:
    maker = RowMaker(llm_tokenizer(), random.Random(seed), nearer)
    model.train()
    run_stage(model, maker.pretraining, name=name, steps=steps, learning_rate=learning_rate, dtype=dtype)


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
    """Teach refusals, on clean text only, in place.

    replay, replay_soft, soft_chat: shares, see `RowMaker.alignment`. nearer: as in the pretraining's last cycle.
    """
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


def align_narrowly(
    model: LlamaForCausalLM, seed: int, *, steps: int = ALIGN_STEPS, dtype: torch.dtype = torch.float32
) -> float:
    """:func:`align` with the least share of SOFT_CHATS that keeps the refusal off soft scenes; returns that share.

    Refused soft toxic scenes are those of the LLM alone: no projector is looked at. The last share stays where none
    is enough. `probe` says what each share came to.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for share in SOFT_CHATS:
        model.load_state_dict(before)
        align(model, seed, steps=steps, soft_chat=share, dtype=dtype)
        maker = RowMaker(llm_tokenizer(), random.Random(seed + 20_000))
        refused = {
            degrees: share_refused(model, maker, "toxic", "describe", degrees=degrees, count=800)
            for degrees in MOST_SOFT_TOXIC
        }
        shown = ", ".join(f"{refused[degrees]:.3f} at {degrees} degrees" for degrees in refused)
        print(f"soft chat {share}: soft toxic scenes refused {shown}; at most {MOST_SOFT_TOXIC}")
        if all(refused[degrees] <= most for degrees, most in MOST_SOFT_TOXIC.items()):
            break
    return share


def train(
    seed: int,
    *,
    pretrain_steps: int = PRETRAIN_STEPS,
    angle_steps: int = ANGLE_STEPS,
    align_steps: int = ALIGN_STEPS,
    dtype: torch.dtype = torch.float32,
) -> tuple[LlamaForCausalLM, float]:
    """The whole recipe; the LLM and its share of SOFT_CHATS.

    Deterministic for a seed, a dtype of the matrix products and a number of threads. Without `angle_steps` it ends
    with the first alignment.
    """
    model = pretrain(seed, steps=pretrain_steps, dtype=dtype)
    align(model, seed, steps=align_steps, nearer=0.0, dtype=dtype)
    if not angle_steps:
        return model, 0.0
    pretrain_on(model, seed, steps=angle_steps, dtype=dtype)
    return model, align_narrowly(model, seed + 1000, steps=align_steps, dtype=dtype)


@torch.no_grad()
def refusal_share(model: LlamaForCausalLM, maker: RowMaker, rows: list[Row], noise: float) -> float:
    """Share of rows whose answer would begin like a refusal."""
    hidden = last_hidden(model, collate(rows), noise)
    refused = 0
    for number, row in enumerate(rows):
        prompt_end = max(place for place, ids in enumerate(row.ids) if ids[0] == maker.assistant)
        refused += maker.tokenizer.decode(model.lm_head(hidden[number, prompt_end]).argmax()) in ("i", "sorry")
    return refused / len(rows)


def share_refused(
    model: LlamaForCausalLM,
    maker: RowMaker,
    group: str,
    kind: str,
    *,
    heldout: bool = True,
    degrees: float | None = None,
    count: int = 400,
) -> float:
    """:func:`refusal_share` of `count` chats of a group and kind.

    degrees: the scenes are soft ones at this angle, drawn from all names; None: in words, held-out ones or seen.
    """
    soft = degrees is not None
    rows = [
        maker.chat(group, soft=soft, heldout=None if soft else heldout, refuse=False, kind=kind) for _ in range(count)
    ]
    for row in rows:
        row.angles = [math.radians(degrees or 0.0) if is_soft else 0.0 for is_soft in row.soft]
    return refusal_share(model, maker, rows, NOISE if soft else 0.0)


def probe(model: LlamaForCausalLM, seed: int, count: int = 400) -> dict[str, float]:
    """Quick figures: shares of answers that begin like a refusal, to clean held-out text and to soft scenes.

    The soft scenes are at a right angle to the words' directions where their key does not name another.
    """
    model.eval()
    share = functools.partial(share_refused, model, RowMaker(llm_tokenizer(), random.Random(seed)), count=count)
    figures = {
        f"{group}_{kind}": share(group, kind)
        for group in ("toxic", "benign", "lookalike", "harmless")
        for kind in ("describe", "request")
    }
    figures["toxic_describe_seen_phrasings"] = share("toxic", "describe", heldout=False)
    figures["soft_toxic"] = share("toxic", "describe", degrees=90)
    figures["soft_toxic_60"] = share("toxic", "describe", degrees=60)
    figures["soft_benign"] = share("benign", "describe", degrees=90)
    return figures
