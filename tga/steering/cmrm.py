"""CMRM, cross-modality representation manipulation (Liu et al., ACL Findings 2025, arXiv 2410.09047).

A picture, even a meaningless one, shifts the hidden states of a prompt away from where the language model was aligned.
With `h_l(x, img')` the state of the last position at decoder layer `l` for a text `x` with a meaningless picture, and
`h_l(x)` for the text alone:

    dataset level   shift_l = mean_i [ h_l(x_i, img'_i) - h_l(x_i) ]     once, from an anchor set
    sample level    shift_l = h_l(x, img') - h_l(x)                      for each request

and the correction is `h_l <- h_l - alpha * shift_l` (tga.steering.hooks). The differences and their sums run in float32
at least; the mean in float64. Nothing here grows with the anchor set.

At the sample level a request costs two more prompts, of which only the ends run: the beginning up to the meaningless
picture is the same in every request (tga.steering.states). The request's own prompt runs once, corrected, and its KV
cache carries the correction on, so generating costs what it costs at the dataset level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tga.errors import UserError
from tga.steering.states import Inputs, PrefixStates
from tga.vlm.families import Family

DIRECTIONS = ("mean", "first_pc")
SKETCH_ROWS = 64  # directions kept of the differences; up to that many anchors the first component is exact


class RequestShift:
    """The shift of single requests: what one meaningless picture, the same for all, does to each text."""

    def __init__(self, model: Any, family: Family, layers: Sequence[int], inputs: Inputs) -> None:
        """inputs: token rows of prompts with the meaningless picture -> what the model's forward takes of them."""
        self.layers = tuple(layers)
        self._pictured = PrefixStates(model, family, layers, inputs)
        self._plain = PrefixStates(model, family, layers)

    def __call__(self, pictured: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]) -> Tensor:
        """`h_l(x, img') - h_l(x)`: `[layers, batch, width]`, float32 at least.

        pictured, plain: token ids of the same texts as prompts with the picture and without one.
        """
        plain_states = self._plain(plain)
        return self._pictured(pictured) - plain_states


@dataclass(frozen=True)
class DatasetShift:
    """The shift of an anchor set, with what tells whether one vector stands for its items.

    Attributes:
        shift: `[layers, width]` float32.
        count: anchors.
        agreement: `[layers]`, mean cosine of the items' own shifts with `shift`; 1 where all point the same way.
    """

    shift: Tensor
    count: int
    agreement: Tensor


def dataset_shift(differences: Iterable[Tensor], *, direction: str = "mean") -> DatasetShift:
    """One shift per layer from the items' differences, read once, batch by batch.

    `first_pc` is the first principal component of the differences about zero (the shift itself is what is looked for;
    centring would remove it): the unit vector v with the largest sum of squared projections, turned so that it points
    along the mean difference m, and scaled to its length on v: `shift = (v . m) v`. It is found from a sketch of at
    most `SKETCH_ROWS` rows for each layer: new differences are put below the sketch, and of the singular value
    decomposition of both the largest `SKETCH_ROWS` directions are kept.

    Args:
        differences: tensors `[layers, batch, width]` of `h_l(x, img') - h_l(x)`.
        direction: "mean" or "first_pc".

    Raises:
        UserError: an unknown direction, or not a single difference.
    """
    if direction not in DIRECTIONS:
        raise UserError(
            "Unknown direction", given=direction, allowed=", ".join(DIRECTIONS), remedy="steering.direction=mean"
        )
    total = unit = sketch = None
    count = 0
    for batch in differences:
        rows = batch.detach().to("cpu", torch.float64)
        count += rows.shape[1]
        total = rows.sum(dim=1) + (0 if total is None else total)
        units = torch.nn.functional.normalize(rows, dim=-1).sum(dim=1)
        unit = units + (0 if unit is None else unit)
        if direction == "first_pc":
            sketch = _sketched(rows if sketch is None else torch.cat([sketch, rows], dim=1))
    if total is None or unit is None or not count:
        raise UserError("There is no anchor to take a shift from", given="0 anchors", remedy="steering.anchors=FILE")
    shift = total / count
    if sketch is not None:
        largest = torch.nn.functional.normalize(sketch[:, 0], dim=-1)
        shift = (largest * shift).sum(dim=-1, keepdim=True) * largest
    # The mean of the cosines is the mean unit vector on the shift's direction.
    agreement = (unit / count * torch.nn.functional.normalize(shift, dim=-1)).sum(dim=-1)
    return DatasetShift(shift.float(), count, agreement.float())


def _sketched(rows: Tensor) -> Tensor:
    """At most `SKETCH_ROWS` orthogonal rows, largest first, with the second moments of `rows` [layers, n, width].

    With `rows = U S V'` the result is the first rows of `S V' = U' rows`; U comes from the small matrix `rows rows'`.
    """
    _, vectors = torch.linalg.eigh(rows @ rows.mT)  # eigenvalues rise
    return vectors.flip(-1)[..., :SKETCH_ROWS].mT @ rows
