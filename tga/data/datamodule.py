"""The Lightning data module: batches in the seeded order of `tga.data.sampling`, taken up again anywhere.

Nothing but the number of batches consumed has to be kept in a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from tga.data.collate import Batch
from tga.data.packed import PackedSamples
from tga.data.sample import Sample
from tga.data.sampling import SeededBatches
from tga.errors import UserError


class ResumableLoader(DataLoader):
    """A DataLoader that counts the batches it handed out and starts behind them when its state is loaded.

    Counting here, in the consuming process, leaves out what workers have prepared ahead of the training.
    """

    def __init__(self, dataset: Sequence[Sample], batches: SeededBatches, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)  # type: ignore[arg-type]
        self._batches = batches
        self.waited_s = 0.0  # between being asked for a batch and having it

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        asked = time.perf_counter()
        for batch in super().__iter__():
            self.waited_s += time.perf_counter() - asked
            self._batches.start += 1
            yield batch
            asked = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The position (in batches of this process), with what it depends on."""
        return {"consumed": self._batches.start, **self._batches.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batches consumed.

        Raises:
            UserError: the state is of another data set, batch size, seed, grouping or number of processes: the
                remaining batches would be others.
        """
        identity = self._batches.identity()
        differing = {key: (state.get(key), value) for key, value in identity.items() if state.get(key) != value}
        if differing:
            text = ", ".join(f"{key} was {then} and is {now}" for key, (then, now) in differing.items())
            remedy = "resume with the settings of the checkpoint's run (config.yaml beside it), or start a new run"
            raise UserError("The checkpoint was made over other data batches", given=text, remedy=remedy)
        self._batches.start = state["consumed"]


class SampleData(lightning.LightningDataModule):
    """The training batches of some samples; the arguments are those of `tga.data.sampling.SeededBatches`."""

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
        grouping: str = "none",
        batches_per_step: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__()
        packed = samples if isinstance(samples, PackedSamples) else PackedSamples(samples)
        self.samples, self.collate = packed, collate
        self.batches = SeededBatches(
            len(packed), batch_size, epochs, seed, max_batches,
            grouping=grouping, lengths=packed.lengths, pictures=packed.pictures,
            batches_per_step=batches_per_step, rank=rank, world=world,
        )  # fmt: skip
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._loader: ResumableLoader | None = None

    @property
    def total_batches(self) -> int:
        """Batches of this process in the whole run, over all epochs."""
        return len(self.batches)

    def train_dataloader(self) -> ResumableLoader:
        """The loader; its position is kept in the checkpoint by the trainer."""
        workers: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        workers["generator"] = torch.Generator()  # the loader's own draws must not move the global generator
        if self.num_workers:
            workers |= {"prefetch_factor": 4, "multiprocessing_context": "spawn"}
        self._loader = ResumableLoader(self.samples, self.batches, collate_fn=self.collate, **workers)
        return self._loader

    @property
    def waited_s(self) -> float:
        """Seconds that the training has waited for batches."""
        return 0.0 if self._loader is None else self._loader.waited_s
