"""Which model it is, by its weights: the same for a checkpoint, its export and a copy elsewhere, in any dtype.

A path says little: a checkpoint and its export are one model, and a path may hold another one tomorrow. Hashing every
weight of a large model takes long, so some values of every parameter are taken, spread evenly over it; training or
merging changes them. Values count as bfloat16, so that a model loaded in bfloat16 and in float32 is the same one.

A hash is exact, which suits weights that reach every loader alike. A model stored in float32 and passed on in
float16 is rounded twice, and hashes of it differ; so where that can happen the values themselves are kept
(`weights_sample`) and compared within what two roundings change (`same_weights`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tga.vlm.families import Family, component

VALUES = 64  # of each parameter
SAMPLED = 16  # of each parameter, where the values are kept
# Two bfloat16 that are roundings of one number are neighbours at most: 2^-7 of the larger one. Below the smallest
# normal float16 the distance is absolute.
RELATIVE, ABSOLUTE = 2.0**-7, 2.0**-23


def model_sample(model: nn.Module, family: Family) -> str:
    """:func:`weights_sample` of vision tower, projector and decoder."""
    paths = (family.vision_tower, family.projector, family.language_model)
    parts = ((path, component(model, path)) for path in paths)
    return weights_sample((f"{path} {name}", value) for path, part in parts for name, value in part.named_parameters())


def weights_sample(named: Iterable[tuple[str, Tensor]]) -> str:
    """Named parameters, in any order, as text for :func:`same_weights`: 16 hex digits of names and shapes, a colon, and
    `SAMPLED` values of each parameter, bfloat16 in base64 (about 45 bytes for each)."""
    parameters = sorted(named, key=lambda item: item[0])
    layout = "".join(f"{name} {tuple(value.shape)}\n" for name, value in parameters)
    values = _values([value for _, value in parameters], SAMPLED)
    return f"{_short(layout)}:{base64.b64encode(values.tobytes()).decode()}"


def same_weights(sample: str, other: str) -> bool:
    """Whether two samples can be of one model: equal names and shapes, values that are at most rounded otherwise."""
    (layout, values), (other_layout, other_values) = _read(sample), _read(other)
    if layout != other_layout or values.shape != other_values.shape:
        return False
    limit = RELATIVE * np.maximum(abs(values), abs(other_values)) + ABSOLUTE
    return bool((abs(values - other_values) <= limit).all())


def short_name(sample: str) -> str:
    """16 hex digits that stand for a sample in a message; of one model in two dtypes they may differ."""
    return _short(sample)


def weights_fingerprint(parts: Mapping[str, nn.Module]) -> str:
    """16 hex digits of named modules: names, shapes and `VALUES` values of their parameters."""
    digest = hashlib.sha256()
    for part, module in parts.items():
        named = {f"{part} {name}": parameter for name, parameter in module.named_parameters()}
        _add(digest, sorted(named.items()))
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, named: Iterable[tuple[str, Tensor]]) -> None:
    parameters = list(named)
    for name, parameter in parameters:
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
    digest.update(_values([parameter for _, parameter in parameters], VALUES).tobytes())


def _values(parameters: Iterable[Tensor], count: int) -> np.ndarray:
    """`count` values of each parameter, spread evenly over it: their bfloat16 as int16."""
    sampled = []
    for parameter in parameters:
        flat = parameter.detach().reshape(-1)
        sampled.append(flat[:: max(1, flat.numel() // count)][:count].to("cpu", torch.bfloat16))
    return torch.cat(sampled).view(torch.int16).numpy() if sampled else np.zeros(0, np.int16)


def _read(sample: str) -> tuple[str, np.ndarray]:
    layout, _, values = sample.partition(":")
    upper = np.frombuffer(base64.b64decode(values), np.int16).astype(np.int32) << 16  # a bfloat16 is half of a float32
    return layout, upper.view(np.float32)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
