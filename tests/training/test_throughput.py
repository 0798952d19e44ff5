"""Tokens, waiting, and model FLOPs against PyTorch's own count of what a step computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import tiny_llava
from tests.training.test_module import build
from tga.data.datamodule import ResumableLoader
from tga.data.sampling import SeededBatches
from tga.training.throughput import Throughput, count, matmul_flops_per_s, model_flops
from tga.vlm.families import family_of
from tga.vlm.freezing import freeze


def test_what_a_batch_counts(tmp_path: Path) -> None:
    _, batch = build(tmp_path)
    tokens, squares, image_tokens, labels = count(batch).tolist()
    lengths = batch.attention_mask.sum(1)
    assert tokens == int(lengths.sum()) and squares == int((lengths**2).sum())
    assert image_tokens == 8 and labels == int((batch.labels != -100).sum())


@pytest.mark.parametrize("parts", [["projector"], ["projector", "language_model"]])
def test_model_flops_are_those_that_pytorch_counts(parts: list[str], tmp_path: Path) -> None:
    """Of one step without objectives. PyTorch counts padding too, and eager attention over all pairs, not half of them;
    what is left is the tower's class token and its attention."""
    module, batch = build(tmp_path, objectives=[])
    freeze(module.model, module.family, parts)
    with FlopCounterMode(display=False) as counter:
        sum(module.step_losses(batch, 0.0).values()).backward()  # type: ignore[union-attr]
    ours = model_flops(module.model, module.family)
    rows, width = batch.attention_mask.shape
    labels = float((batch.labels[:, 1:] != -100).sum())
    counted = ours.of([rows * width, 2 * rows * width**2, 8, labels])
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_attention_costs_grow_with_the_square() -> None:
    model, _ = tiny_llava()
    freeze(model, family_of(model), ["projector"])
    flops = model_flops(model, family_of(model))
    assert flops.per_squared_token == 6 * 32 * 3
    assert flops.of([10.0, 100.0, 0.0, 0.0]) - flops.of([10.0, 0.0, 0.0, 0.0]) == 100 * 6 * 32 * 3


def test_waiting_for_batches_is_measured() -> None:
    class Slow:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            time.sleep(0.02)
            return index

    def training(loader: ResumableLoader) -> Iterator[None]:
        for _ in loader:
            time.sleep(0.05)
            yield

    loader = ResumableLoader(Slow(), SeededBatches(4, 2, 1, 0))  # type: ignore[arg-type]
    for _ in training(loader):
        pass
    assert 0.07 < loader.waited_s < 0.09 + 0.2
    throughput = Throughput(lambda: 1.0)
    assert throughput.data_wait_share == throughput.samples_per_s == throughput.tokens == 0
    throughput.seconds, throughput.samples = 4.0, 8
    assert (throughput.data_wait_share, throughput.samples_per_s) == (0.25, 2.0)


def test_the_device_is_measured() -> None:
    assert 1e8 < matmul_flops_per_s(torch.device("cpu"), torch.float32, seconds=0.05) < 1e13
