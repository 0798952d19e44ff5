"""The order of the batches: complete, seeded, and the same from any start."""

from __future__ import annotations

from tga.data.datamodule import SeededBatches


def test_each_epoch_has_every_sample_once_and_its_own_order() -> None:
    batches = SeededBatches(samples=10, batch_size=4, epochs=2, seed=3)
    found = list(batches)
    assert len(batches) == 6 and [len(batch) for batch in found] == [4, 4, 2] * 2
    first, second = sum(found[:3], []), sum(found[3:], [])
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert list(SeededBatches(10, 4, 2, seed=3)) == found
    assert list(SeededBatches(10, 4, 2, seed=4)) != found


def test_any_start_gives_the_rest_and_the_length_stays() -> None:
    everything = list(SeededBatches(10, 4, 3, seed=0))
    for start in range(10):
        batches = SeededBatches(10, 4, 3, seed=0)
        batches.start = start
        assert list(batches) == everything[start:] and len(batches) == 9


def test_a_limit_ends_the_sequence_early() -> None:
    assert list(SeededBatches(10, 4, 3, 0, max_batches=4)) == list(SeededBatches(10, 4, 3, 0))[:4]
    assert len(SeededBatches(10, 4, 1, 0, max_batches=400)) == 3
