"""Batches in a seeded order that can be taken up again anywhere: the Lightning data module.

All epochs of a run are one sequence of `total_batches` batches. The order within each epoch is a permutation drawn
from (seed, epoch), so batch number n is the same whether the run got there at once or was killed and resumed: nothing
but the number of batches consumed has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Sampler

from tga.data.collate import Batch
from tga.data.sample import Sample
from tga.errors import UserError


class SeededBatches(Sampler[list[int]]):
    """Indices by batch, over all epochs, beginning at batch number `start`. The last batch of an epoch may be short."""

    def __init__(self, samples: int, batch_size: int, epochs: int, seed: int, max_batches: int | None = None) -> None:
        self.samples, self.batch_size, self.epochs, self.seed = samples, batch_size, epochs, seed
        self.per_epoch = math.ceil(samples / batch_size)
        self.total = min(self.per_epoch * epochs, max_batches if max_batches is not None else self.per_epoch * epochs)
        self.start = 0

    def __len__(self) -> int:
        """All batches of the run, wherever it starts: the trainer counts on from where it was."""
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        for number in range(self.start, len(self)):
            epoch, position = divmod(number, self.per_epoch)
            if not order or position == 0:
                order = self.order(epoch)
            yield order[position * self.batch_size : (position + 1) * self.batch_size]

    def order(self, epoch: int) -> list[int]:
        """The permutation of one epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.samples, generator=generator).tolist()


class ResumableLoader(DataLoader):
    """A DataLoader that counts the batches it handed out and starts behind them when its state is loaded.

    Counting here, in the consuming process, leaves out what workers have prepared ahead of the training.
    """

    def __init__(self, dataset: Sequence[Sample], batches: SeededBatches, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)  # type: ignore[arg-type]
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self._batches.start += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position, with what it depends on."""
        return {"consumed": self._batches.start, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the batches consumed.

        Raises:
            UserError: the state is of another data set, batch size or seed: the remaining batches would be others.
        """
        identity = self._identity()
        differing = {key: (state.get(key), value) for key, value in identity.items() if state.get(key) != value}
        if differing:
            text = ", ".join(f"{key} was {then} and is {now}" for key, (then, now) in differing.items())
            remedy = "resume with the settings of the checkpoint's run (config.yaml beside it), or start a new run"
            raise UserError("The checkpoint was made over other data batches", given=text, remedy=remedy)
        self._batches.start = state["consumed"]

    def _identity(self) -> dict[str, int]:
        batches = self._batches
        return {"samples": batches.samples, "batch_size": batches.batch_size, "seed": batches.seed}


class SampleData(lightning.LightningDataModule):
    """The training batches of a list of samples."""

    def __init__(
        self,
        samples: Sequence[Sample],
        collate: Callable[[list[Sample]], Batch],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        max_batches: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.samples, self.collate = samples, collate
        self.batches = SeededBatches(len(samples), batch_size, epochs, seed, max_batches)
        self.num_workers, self.pin_memory = num_workers, pin_memory

    @property
    def total_batches(self) -> int:
        """Batches of the whole run, over all epochs."""
        return len(self.batches)

    def train_dataloader(self) -> ResumableLoader:
        """The loader; its position is kept in the checkpoint by the trainer."""
        workers: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        workers["generator"] = torch.Generator()  # the loader's own draws must not move the global generator
        if self.num_workers:
            workers |= {"prefetch_factor": 4, "multiprocessing_context": "spawn"}
        return ResumableLoader(self.samples, self.batches, collate_fn=self.collate, **workers)
