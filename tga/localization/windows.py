"""Refusals under interventions in windows of layers (Figures 3 and 5 of TGA).

The same prompts are asked untouched and once for each set of layers.

How an answer is made, judged and changed comes from the caller; here the prompts pass by once, batch by batch, and only
counts are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from tga.errors import UserError
from tga.localization.rows import Rows

PLAIN = "plain"  # the condition without any layer

Layers = tuple[int, ...]


@dataclass(frozen=True)
class AskedBatch:
    """A batch of prompts: their ids, what `generate` takes, and `[batch, tokens]` bool, which tokens are touched."""

    ids: tuple[str, ...]
    inputs: Any
    places: Tensor


@dataclass(frozen=True)
class Answer:
    """One judged answer: under which condition, to which prompt."""

    condition: str
    id: str
    answer: str
    refused: bool


@dataclass
class Tally:
    """Refusals among answers."""

    refused: int = 0
    n: int = 0

    @property
    def share(self) -> float:
        """The defence success rate; 0 without answers."""
        return self.refused / self.n if self.n else 0.0


def layer_windows(layers: int, size: int, stride: int = 1) -> list[tuple[int, int]]:
    """First and last layer of each window of `size` decoder layers within 1..`layers`; the last one ends at `layers`.

    Raises:
        UserError: a size outside of 1..`layers`, or a stride below 1.
    """
    if not 1 <= size <= layers or stride < 1:
        raise UserError(
            "Windows of layers do not fit the model",
            given=f"windows of {size} layers, {stride} apart",
            allowed=f"1 to {layers} layers, at least 1 apart",
            remedy="localization.window=2 localization.stride=1",
        )
    starts = list(range(1, layers - size + 2, stride))
    if starts[-1] != layers - size + 1:
        starts.append(layers - size + 1)
    return [(start, start + size - 1) for start in starts]


def window_name(window: tuple[int, int]) -> str:
    """`window_<first>_<last>`."""
    return f"window_{window[0]}_{window[1]}"


def refusals(
    batches: Iterable[AskedBatch],
    conditions: Mapping[str, Layers],
    *,
    intervene: Callable[[Layers, Tensor], AbstractContextManager[Rows]],
    generate: Callable[[Any, Rows], Sequence[str]],
    judge: Callable[[str], bool],
    on_answer: Callable[[Answer], None],
) -> dict[str, Tally]:
    """Refusals by condition.

    Args:
        conditions: name -> the layers that are touched; none touches nothing.
        intervene: layers and places -> the block in which they are touched.
        generate: inputs, and the rows to `keep` when others leave the batch -> one answer per prompt.
        judge: whether an answer refuses.
        on_answer: told of each answer.
    """
    tallies = {name: Tally() for name in conditions}
    for asked in batches:
        for name, layers in conditions.items():
            with intervene(layers, asked.places) as rows:
                answers = generate(asked.inputs, rows)
            for identity, answer in zip(asked.ids, answers, strict=True):
                refused = judge(answer)
                tallies[name].refused += refused
                tallies[name].n += 1
                on_answer(Answer(name, identity, answer, refused))
    return tallies


@dataclass(frozen=True)
class InsideOutside:
    """How far the rate falls, on average, by windows that touch the band and by those that do not; None for no such."""

    inside: float | None
    outside: float | None

    @property
    def inside_lowers_more(self) -> bool | None:
        """Whether windows that touch the band lower the rate more; None where there is nothing to compare."""
        if self.inside is None or self.outside is None:
            return None
        return self.inside > self.outside


def inside_outside(plain: Tally, by_window: Mapping[tuple[int, int], Tally], band: tuple[int, int]) -> InsideOutside:
    """Falls of the rate against `plain` (positive: lower), split by whether the window shares a layer with the band."""
    falls: dict[bool, list[float]] = {True: [], False: []}
    for (first, last), tally in by_window.items():
        falls[first <= band[1] and last >= band[0]].append(plain.share - tally.share)
    inside, outside = (fmean(found) if found else None for found in (falls[True], falls[False]))
    return InsideOutside(inside, outside)
