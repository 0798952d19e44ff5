"""Correct the output of decoder layers while a block runs: `h_l <- h_l - alpha * shift_l`.

PyTorch calls a forward hook with what a module returns, and takes what the hook returns in its place; so what one layer
hands to the next, and everything above it (later layers, the KV cache, the logits), sees the corrected state. A hook
here is one subtraction: the scaled shift is made once in the dtype and on the device of the states. With `alpha` 0
there is no hook at all, so the model computes what it always computes, to the last bit. When the block ends, also by an
exception, the hooks are gone.

One shift for all rows `[width]`, or one for each request `[requests, width]`. Where a model runs several rows for each
request (beams, several returned sequences), those rows follow each other, as transformers lays them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tga.errors import UserError
from tga.vlm.families import Family, component

POSITIONS = ("all", "last")


class Steering:
    """What a steered block hands out: the hooks of its layers (none with `alpha` 0)."""

    def __init__(self, hooks: list[_Shift]) -> None:
        self._hooks = hooks

    def keep(self, rows: Tensor) -> None:
        """Say which requests stay in the batch, as numbers [kept] int64 of the present ones, when others leave it."""
        for hook in self._hooks:
            hook.keep(rows)


@contextmanager
def steered(
    model: nn.Module,
    family: Family,
    shifts: Mapping[int, Tensor],
    *,
    alpha: float,
    positions: str = "all",
    pictured: Tensor | None = None,
) -> Iterator[Steering]:
    """Subtract `alpha * shifts[l]` from the output of each decoder layer `l` in every forward pass inside the block.

    Args:
        shifts: layer number in 1..L -> `[width]`, or `[requests, width]` with one shift for each row of the batch.
        alpha: strength; 0 adds no hook.
        positions: "all" corrects every position of the prompt and each generated token; "last" the last position of
            each forward pass, that is of the prompt (padded on the left) and each generated token.
        pictured: `[requests]` bool, False for requests without a picture: those are left as they are.

    Raises:
        UserError: unknown positions.
        ValueError: a layer outside of 1..L; in a forward pass, a batch that is no multiple of the requests.
    """
    if positions not in POSITIONS:
        raise UserError(
            "Unknown positions", given=positions, allowed=", ".join(POSITIONS), remedy="steering.positions=all"
        )
    decoder = component(model, family.decoder_layers)
    assert isinstance(decoder, nn.ModuleList)
    wrong = sorted(layer for layer in shifts if not 1 <= layer <= len(decoder))
    if wrong:
        raise ValueError(f"no decoder layers {wrong}; there are 1 to {len(decoder)}")
    hooks: list[_Shift] = []
    handles: list[RemovableHandle] = []
    try:
        for layer, shift in sorted(shifts.items()) if alpha != 0 else ():
            hooks.append(_Shift(_per_row(shift, alpha, pictured), last=positions == "last"))
            handles.append(decoder[layer - 1].register_forward_hook(hooks[-1]))
        yield Steering(hooks)
    finally:
        for handle in handles:
            handle.remove()


def _per_row(shift: Tensor, alpha: float, pictured: Tensor | None) -> Tensor:
    """The scaled shift as `[1 or requests, 1, width]`, zero for requests without a picture."""
    scaled = (alpha * shift.detach()).unsqueeze(-2)
    if pictured is not None:
        scaled = scaled * pictured.to(scaled.device)[:, None, None]  # x - 0 is x, to the last bit
    return scaled if scaled.dim() == 3 else scaled.unsqueeze(0)


class _Shift:
    """The hook of one layer."""

    def __init__(self, shift: Tensor, last: bool) -> None:
        self._given = shift
        self._ready = shift  # as the states were the last time: dtype, device, rows
        self._last = last

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> Any:
        if isinstance(output, tuple):
            return (self._corrected(output[0]), *output[1:])
        return self._corrected(output)

    def keep(self, rows: Tensor) -> None:
        if len(self._given) > 1:
            self._given = self._ready = self._given[rows.to(self._given.device)]

    def _corrected(self, hidden: Tensor) -> Tensor:
        ready = self._ready
        if (
            ready.dtype is not hidden.dtype
            or ready.device != hidden.device
            or ready.shape[0] not in (1, hidden.shape[0])
        ):
            ready = self._prepare(hidden)
        if self._last and hidden.shape[1] > 1:
            return torch.cat((hidden[:, :-1], torch.sub(hidden[:, -1:], ready)), dim=1)
        return torch.sub(hidden, ready)

    def _prepare(self, hidden: Tensor) -> Tensor:
        requests, rows = len(self._given), len(hidden)
        if rows % requests:
            raise ValueError(f"a batch of {rows} rows for the shifts of {requests} requests")
        shift = self._given if requests == 1 else self._given.repeat_interleave(rows // requests, dim=0)
        self._ready = shift.to(hidden.device, hidden.dtype)
        return self._ready
