"""What each token of a text weighs in the text's pooled state: smooth inverse frequency (SIF).

    w(token) = a / (a + p(token)),   p the token's share of all tokens of the captions
    pooled = sum_t w_t h_t / sum_t w_t

Arora, Liang and Ma, "A simple but tough-to-beat baseline for sentence embeddings", ICLR 2017, section 3, with a about
1e-3. It is not of the TGA paper, which takes the plain mean: there words that every caption has ("a", "of", ".") are
most of the tokens, so the mean states of any two captions are alike, and a raw cosine draws every image to the same
place.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

MEAN, SIF = "mean", "sif"
POOLINGS = (MEAN, SIF)
SIF_A = 1e-3  # of the SIF paper


def smooth_inverse_frequency(counts: Tensor, a: float) -> Tensor:
    """Weights by token id.

    Args:
        counts: `[vocabulary]` int64, how often each token was seen.
        a: the smoothing, above 0: a token of this share weighs one half.

    Returns:
        `[vocabulary]` float32, above 0 and at most 1; 1 for a token that was never seen.

    Raises:
        ValueError: no token was seen, or `a` is not above 0.
    """
    total = int(counts.sum())
    if total == 0 or not a > 0:
        raise ValueError(f"{total} tokens and a = {a}: both must be above 0")
    shares = counts.to(torch.float64) / total
    return (a / (a + shares)).to(torch.float32).clamp(min=torch.finfo(torch.float32).tiny)


def token_weights_fingerprint(weights: Tensor) -> str:
    """16 hex digits of weights `[vocabulary]` float32 on the CPU."""
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]
