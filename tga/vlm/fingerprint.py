"""Which model it is, by its weights: the same for a checkpoint, its export and a copy elsewhere, in any dtype.

A path says little: a checkpoint and its export are one model, and a path may hold another one tomorrow. Hashing every
weight of a large model takes long, so some values of every parameter are hashed, spread evenly over it; training or
merging changes them. Values count as bfloat16, so that a model loaded in bfloat16 and in float32 is the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tga.vlm.families import Family, component

VALUES = 64  # of each parameter


def model_fingerprint(model: nn.Module, family: Family) -> str:
    """16 hex digits of vision tower, projector and decoder: names, shapes and `VALUES` values of their parameters."""
    paths = (family.vision_tower, family.projector, family.language_model)
    return weights_fingerprint({path: component(model, path) for path in paths})


def weights_fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """16 hex digits of named modules: names, shapes and `VALUES` values of their parameters."""
    digest = hashlib.sha256()
    for part, module in parts.items():
        named = {f"{part} {name}": parameter for name, parameter in module.named_parameters()}
        _add(digest, sorted(named.items()))
    return digest.hexdigest()[:16]


def parameters_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits of named parameters, in any order: names, shapes and `VALUES` values of each."""
    digest = hashlib.sha256()
    _add(digest, sorted(named, key=lambda item: item[0]))
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, named: Iterable[tuple[str, Tensor]]) -> None:
    sampled = []
    for name, parameter in named:
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        flat = parameter.detach().reshape(-1)
        sampled.append(flat[:: max(1, flat.numel() // VALUES)][:VALUES].to("cpu", torch.bfloat16))
    digest.update(torch.cat(sampled).view(torch.int16).numpy().tobytes() if sampled else b"")
