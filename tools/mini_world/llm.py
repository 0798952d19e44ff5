"""Train the mini world's LLM in two stages: broad pretraining without refusals, then a short alignment on clean text.

Real LLMs learn meaning first, from everything, and are aligned afterwards, briefly, on clean text; an LLM that learns
language and refusal together refuses as broadly as it understands, pictures included (docs/mini.md).
"""

from __future__ import annotations

import math
import random
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from tga.mini.tokenizer import llm_tokenizer
from tools.mini_world.rows import Mixture, RowMaker, collate


def config(vocabulary: int, width: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * 8 / 3 // 32 * 32),
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def embed(table: nn.Embedding, batch: Mixture, noise: float) -> Tensor:
    """Mixtures -> input embeddings [batch, tokens, width]; soft positions get Gaussian noise of `noise` x the table's std."""
    embeddings = (table(batch.ids) * batch.weights.unsqueeze(-1)).sum(-2)
    scale = noise * table.weight.detach().std()
    return embeddings + batch.soft.unsqueeze(-1) * scale * torch.randn_like(embeddings)


def loss_of(model: LlamaForCausalLM, batch: Mixture, noise: float) -> Tensor:
    hidden = model.model(
        inputs_embeds=embed(model.get_input_embeddings(), batch, noise), use_cache=False
    ).last_hidden_state
    targets = batch.targets[:, 1:]
    chosen = targets != -100
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][chosen]).float(), targets[chosen])


def run_stage(
    model: LlamaForCausalLM, rows, *, name: str, steps: int, batch_size: int, learning_rate: float, noise: float
) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    progress = tqdm(range(steps), desc=name, mininterval=5)
    mean = 0.0
    for step in progress:
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        batch = collate([rows() for _ in range(batch_size)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = 0.98 * mean + 0.02 * loss.item() if step else loss.item()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{mean:.3f}")
    return mean


@torch.no_grad()
def first_words(model: LlamaForCausalLM, maker: RowMaker, rows, noise: float = 0.0) -> list[str]:
    """The first word of the answer of each row."""
    batch = collate(rows)
    hidden = model.model(
        inputs_embeds=embed(model.get_input_embeddings(), batch, noise), use_cache=False
    ).last_hidden_state
    words = []
    for i, row in enumerate(rows):
        last = max(p for p, ids in enumerate(row.ids) if ids[0] == maker.assistant)
        words.append(maker.tokenizer.decode(model.lm_head(hidden[i, last]).argmax()))
    return words


def probe(model: LlamaForCausalLM, seed: int, count: int = 400) -> dict[str, float]:
    """Quick figures: share of answers that begin like a refusal, in clean text (held-out) and in soft positions."""
    model.eval()
    maker = RowMaker(llm_tokenizer(), random.Random(seed))
    refused = lambda rows, noise=0.0: (
        sum(w in ("i", "sorry") for w in first_words(model, maker, rows, noise)) / len(rows)
    )
    figures = {}
    for group in ("toxic", "benign", "lookalike", "harmless"):
        for kind in ("describe", "request"):
            figures[f"{group}_{kind}"] = refused(
                [maker.chat(group, soft=False, heldout=True, refuse=False, kind=kind) for _ in range(count)]
            )
    figures["toxic_seen_phrasing"] = refused(
        [maker.chat("toxic", soft=False, heldout=False, refuse=False, kind="describe") for _ in range(count)]
    )
    for group in ("toxic", "benign"):
        figures[f"soft_{group}"] = refused(
            [maker.chat(group, soft=True, heldout=None, refuse=False, kind="describe") for _ in range(count)], 0.3
        )
    model.train()
    return figures


def train(
    seed: int,
    *,
    width: int,
    layers: int,
    pretrain_steps: int,
    align_steps: int,
    batch_size: int,
    align_lr: float,
    replay: float,
    replay_soft: float,
    noise: float = 0.3,
    learning_rate: float = 2e-3,
    pretrained: LlamaForCausalLM | None = None,
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    maker = RowMaker(llm_tokenizer(), random.Random(seed))
    model = pretrained
    if model is None:
        cfg = config(len(maker.words), width, layers)
        cfg._attn_implementation = "eager"
        model = LlamaForCausalLM(cfg)
        started = time.monotonic()
        run_stage(
            model,
            maker.pretraining,
            name="pretrain",
            steps=pretrain_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            noise=noise,
        )
        print(f"pretraining {time.monotonic() - started:.0f} s")
    if align_steps:
        run_stage(
            model,
            lambda: maker.alignment(replay, replay_soft),
            name="align",
            steps=align_steps,
            batch_size=batch_size,
            learning_rate=align_lr,
            noise=noise,
        )
    return model.eval()
