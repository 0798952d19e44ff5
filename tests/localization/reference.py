"""A two-layer Llama in float64 NumPy, with a mask of edges that are cut: the independent computation."""

from __future__ import annotations

from typing import Any

import numpy as np


def forward(
    model: Any, ids: list[int], cut: dict[int, np.ndarray], added: dict[int, np.ndarray] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """One unpadded prompt through a `LlamaForCausalLM`.

    cut: decoder layer (1-based) -> `[tokens, tokens]` bool, edges query -> key without attention; added: layer ->
    `[tokens, width]`, added to its output. Returns the hidden states of layers 0..L, the attention weights `[heads,
    tokens, tokens]` of layers 1..L, and the logits `[tokens, vocabulary]`.
    """
    config = model.config
    heads, width = config.num_attention_heads, config.hidden_size
    size, tokens = width // heads, len(ids)
    state = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    hidden = state["model.embed_tokens.weight"][ids]
    states, weights = [hidden], []
    for layer in range(config.num_hidden_layers):

        def of(name: str, layer: int = layer) -> np.ndarray:
            return state[f"model.layers.{layer}.{name}.weight"]

        normed = norm(hidden, of("input_layernorm"), config.rms_norm_eps)
        q, k, v = (
            (normed @ of(f"self_attn.{name}_proj").T).reshape(tokens, heads, size).transpose(1, 0, 2) for name in "qkv"
        )
        theta = config.rope_parameters["rope_theta"]
        scores = rotated(q, theta) @ rotated(k, theta).transpose(0, 2, 1) / np.sqrt(size)
        closed = np.triu(np.ones((tokens, tokens), dtype=bool), 1)
        closed |= cut.get(layer + 1, np.zeros_like(closed))
        scores = np.where(closed, -np.inf, scores)
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention = exponentials / exponentials.sum(axis=-1, keepdims=True)
        weights.append(attention)
        mixed = (attention @ v).transpose(1, 0, 2).reshape(tokens, width)
        hidden = hidden + mixed @ of("self_attn.o_proj").T
        normed = norm(hidden, of("post_attention_layernorm"), config.rms_norm_eps)
        gate = normed @ of("mlp.gate_proj").T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
        if added and layer + 1 in added:
            hidden = hidden + added[layer + 1]
        states.append(hidden)
    final = norm(hidden, state["model.norm.weight"], config.rms_norm_eps)
    return states, weights, final @ state["lm_head.weight"].T


def norm(hidden: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm."""
    return hidden / np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + eps) * weight


def rotated(x: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions 0, 1, ... on `[heads, tokens, size]`, halves as transformers pairs them."""
    size = x.shape[-1]
    angles = np.arange(x.shape[1])[:, None] / theta ** (np.arange(0, size, 2) / size)[None]
    cosine, sine = np.cos(np.tile(angles, 2)), np.sin(np.tile(angles, 2))
    turned = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
    return x * cosine + turned * sine
