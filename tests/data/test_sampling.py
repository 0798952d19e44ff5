"""The order of the batches: complete, seeded, the same from any start, grouped and shared out where asked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tga.data.sampling import SeededBatches
from tga.errors import UserError

N = 403
LENGTHS = np.random.default_rng(0).integers(1, 1000, size=N)
PICTURES = (np.random.default_rng(1).random(N) < 0.8).astype(int)


def grouped(grouping: str, **options: int) -> SeededBatches:
    return SeededBatches(N, 4, 2, 7, grouping=grouping, lengths=LENGTHS, pictures=PICTURES, **options)  # type: ignore[arg-type]


def test_each_epoch_has_every_sample_once_and_its_own_order() -> None:
    batches = SeededBatches(samples=10, batch_size=4, epochs=2, seed=3)
    found = list(batches)
    assert len(batches) == 6 and [len(batch) for batch in found] == [4, 4, 2] * 2
    first, second = sum(found[:3], []), sum(found[3:], [])
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert list(SeededBatches(10, 4, 2, seed=3)) == found
    assert list(SeededBatches(10, 4, 2, seed=4)) != found


def test_any_start_gives_the_rest_and_the_length_stays() -> None:
    for make in (lambda: SeededBatches(10, 4, 3, seed=0), lambda: SeededBatches(10, 2, 2, seed=0, rank=1, world=2)):
        everything = list(make())
        for start in range(len(everything) + 1):
            batches = make()
            batches.start = start
            assert list(batches) == everything[start:] and len(batches) == len(everything)


def test_a_limit_ends_the_sequence_early() -> None:
    assert list(SeededBatches(10, 4, 3, 0, max_batches=4)) == list(SeededBatches(10, 4, 3, 0))[:4]
    assert len(SeededBatches(10, 4, 1, 0, max_batches=400)) == 3


@pytest.mark.parametrize("grouping", ["none", "modality_length"])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_take_turns(grouping: str, world: int) -> None:
    """At each step the processes see together what one process sees that accumulates as many batches."""
    alone = list(grouped(grouping, batches_per_step=world))
    shares = [list(grouped(grouping, batches_per_step=world, rank=rank, world=world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    turns = list(itertools.chain.from_iterable(zip(*shares, strict=True)))
    assert turns == alone[: len(alone) // world * world] and len(alone) - len(turns) < world


@pytest.mark.parametrize("grouping", ["length", "modality", "modality_length"])
def test_grouping_keeps_every_sample_and_the_number_of_batches(grouping: str) -> None:
    batches = grouped(grouping, batches_per_step=2)
    for epoch in (batches.epoch(0), batches.epoch(1)):
        assert sorted(itertools.chain.from_iterable(epoch)) == list(range(N)) and len(epoch) == batches.per_epoch
        assert [len(batch) for batch in epoch] == [4] * 100 + [3]
    assert batches.epoch(0) != batches.epoch(1) and batches.epoch(0) == grouped(grouping, batches_per_step=2).epoch(0)


def test_grouping_by_length_saves_padding_and_has_no_order_of_length() -> None:
    def padded(grouping: str) -> float:
        epoch = grouped(grouping, batches_per_step=2).epoch(0)
        return sum(len(batch) * max(LENGTHS[batch]) for batch in epoch) / LENGTHS.sum()

    assert padded("none") > 1.5 and padded("length") < 1.1 and padded("modality_length") < 1.15
    longest = [max(LENGTHS[batch]) for batch in grouped("length").epoch(0)[:100]]
    assert abs(np.corrcoef(np.arange(100), longest)[0, 1]) < 0.3


def test_grouping_by_modality_mixes_no_step_but_the_last_ones() -> None:
    epoch = grouped("modality", batches_per_step=2).epoch(0)
    kinds = [{int(PICTURES[i]) for batch in epoch[at : at + 2] for i in batch} for at in range(0, len(epoch), 2)]
    mixed = [step for step, kind in enumerate(kinds) if len(kind) == 2]
    assert all(step >= len(kinds) - 2 for step in mixed)
    assert kinds.count({0}) >= 5 and kinds.count({1}) >= 30


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="none, length, modality, modality_length"):
        grouped("size")
    with pytest.raises(UserError, match="2 batches, 3 processes"):
        SeededBatches(8, 4, 1, 0, world=3)
