"""Which samples make which batch: seeded, the same from any start, and shared out between processes without overlap.

All epochs of a run are one sequence of batches, drawn from (seed, epoch) alone. So batch number n is the same whether
the run got there at once or was killed and resumed, and process r of w takes the batches r, r + w, r + 2w, ...: two
processes see at each step what one process sees that accumulates two batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from tga.errors import UserError

GROUPINGS = ("none", "length", "modality", "modality_length")
POOL_STEPS = 50  # steps whose samples are sorted together: enough to waste little padding, and short of a fixed order


class SeededBatches(Sampler[list[int]]):
    """Indices by batch, over all epochs, for one process, beginning at its batch number `start`.

    The last batch of an epoch may be short. What does not make a whole round of all processes at the very end of
    the run is left out.

    Args:
        samples: how many there are.
        epochs: how often each is seen.
        max_batches: of each process; None for all epochs.
        grouping: "length" puts samples of similar length into one optimiser step, "modality" those with pictures and
            those without into different ones, "modality_length" both; the order of the steps stays random.
        lengths, pictures: of each sample, for the grouping.
        batches_per_step: batches of all processes in one optimiser step.
        rank, world: which of how many processes this is.

    Raises:
        UserError: an unknown grouping, or less data than one batch for each process.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        epochs: int,
        seed: int,
        max_batches: int | None = None,
        *,
        grouping: str = "none",
        lengths: np.ndarray | Sequence[int] | None = None,
        pictures: np.ndarray | Sequence[int] | None = None,
        batches_per_step: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if grouping not in GROUPINGS:
            allowed = ", ".join(GROUPINGS)
            raise UserError("Unknown grouping", given=grouping, allowed=allowed, remedy="training.grouping=none")
        self.samples, self.batch_size, self.epochs, self.seed = samples, batch_size, epochs, seed
        self.grouping, self.batches_per_step, self.rank, self.world = grouping, batches_per_step, rank, world
        zeros = np.zeros(samples, dtype=np.int64)
        by_length, by_modality = "length" in grouping, "modality" in grouping
        self._lengths = np.asarray(lengths) if by_length and lengths is not None else zeros
        self._pictured = np.asarray(pictures) > 0 if by_modality and pictures is not None else zeros.astype(bool)
        self.per_epoch = math.ceil(samples / batch_size)
        whole = self.per_epoch * epochs // world
        self.total = whole if max_batches is None else min(whole, max_batches)
        self.start = 0
        if not self.total:
            raise UserError(
                "There are fewer batches than processes",
                given=f"{self.per_epoch * epochs} batches, {world} processes",
                remedy="training.batch_size=... smaller, or fewer processes",
            )

    def __len__(self) -> int:
        """All batches of this process, wherever it starts: the trainer counts on from where it was."""
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        epoch, batches = -1, []
        for number in range(self.start, len(self)):
            now, position = divmod(number * self.world + self.rank, self.per_epoch)
            if now != epoch:
                epoch, batches = now, self.epoch(now)
            yield batches[position]

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of all processes in one epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.samples, generator=generator).numpy()
        if self.grouping != "none":
            order = self._grouped(order, generator)
        return [part.tolist() for part in np.split(order, range(self.batch_size, self.samples, self.batch_size))]

    def _grouped(self, order: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """The order rearranged so that each optimiser step is of one kind; what fills no step comes last."""
        step = self.batch_size * self.batches_per_step
        steps: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for pictured in (True, False):
            kind = order[self._pictured[order] == pictured]
            whole = len(kind) // step * step
            rest.append(kind[whole:])
            for pool in np.split(kind[:whole], range(step * POOL_STEPS, whole, step * POOL_STEPS)):
                by_length = pool[np.argsort(-self._lengths[pool], kind="stable")]
                steps.extend(by_length.reshape(-1, step))
        shuffled = torch.randperm(len(steps), generator=generator).tolist()
        return np.concatenate([*(steps[i] for i in shuffled), *rest])

    def identity(self) -> dict[str, Any]:
        """What the batches depend on: a position means nothing under another one."""
        return {
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "grouping": self.grouping,
            "batches_per_step": self.batches_per_step,
            "processes": self.world,
        }
