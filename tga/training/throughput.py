"""How fast a run is: samples, tokens, waiting for data, and the share of the device's arithmetic that the model needs.

Model FLOPs count what one training step of the model needs and nothing else: no second forward pass of gradient
checkpointing, no text targets of the objectives. With P parameters in matrix products and T tokens a forward pass is
2PT; the gradient with respect to what comes in is another 2PT, that of trained weights a third. Attention adds
2 d S^2 per layer and sequence of S tokens for a causal forward pass, and twice that backwards. The vision tower counts
with the image tokens. The device's arithmetic is measured on a large matrix product, not taken from a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from tga.data.collate import FILLER, Batch
from tga.vlm.families import Family, component, num_layers
from tga.vlm.lm_loss import IGNORED_LABEL


class Throughput(lightning.Callback):
    """Counts what this process did since it started; the other callbacks and the summary read it.

    Args:
        waited: seconds that the training has waited for batches so far.
    """

    def __init__(self, waited: Callable[[], float]) -> None:
        self.samples = 0
        self.seconds = 0.0
        self._waited = waited
        self._started = 0.0
        self._counts: Tensor | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """One more batch; its tokens are counted on the device, without waiting for it."""
        counts = count(batch)
        self._counts = counts if self._counts is None else self._counts + counts
        self.samples += sum(sample_id != FILLER for sample_id in batch.ids)
        self.seconds = time.perf_counter() - self._started

    @property
    def samples_per_s(self) -> float:
        """Samples per second since the start, the first step included."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def counts(self) -> list[float]:
        """Of all batches together, see :func:`count`."""
        return [0.0] * 4 if self._counts is None else self._counts.tolist()

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, image tokens included, padding left out."""
        return int(self.counts[0])

    @property
    def data_wait_share(self) -> float:
        """Share of the time in which the training waited for a batch."""
        return min(1.0, self._waited() / self.seconds) if self.seconds else 0.0


def count(batch: Batch) -> Tensor:
    """`[4]` float64: tokens, sum of the squares of the sequences' tokens, image tokens, labels."""
    lengths = batch.attention_mask.sum(1).double()
    labels = (batch.labels != IGNORED_LABEL).sum()
    return torch.stack([lengths.sum(), lengths.square().sum(), batch.image_mask.sum().double(), labels.double()])


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations of a training step per unit of what :func:`count` counts."""

    per_token: float
    per_squared_token: float
    per_image_token: float
    per_label: float

    def of(self, counts: list[float]) -> float:
        """FLOPs of some batches."""
        costs = (self.per_token, self.per_squared_token, self.per_image_token, self.per_label)
        return sum(cost * number for cost, number in zip(costs, counts, strict=True))


def model_flops(model: nn.Module, family: Family, *, tower_runs: bool = True) -> ModelFlops:
    """The costs of a model by what trains in it; from what does not train only the gradient's path is counted.

    tower_runs: the vision tower is part of a step; False where its features are stored.
    """
    layers, head = component(model, family.decoder_layers), component(model, family.lm_head)
    projector, tower = component(model, family.projector), component(model, family.vision_tower)
    embeddings = component(model, family.embed_tokens).weight
    assert isinstance(embeddings, Tensor)
    tower_trains = any(parameter.requires_grad for parameter in tower.parameters())
    within = {id(parameter) for parameter in projector.parameters()}
    tower_cost = sum(p.numel() * _passes(p, path=tower_trains) for p in tower.parameters() if id(p) not in within)
    return ModelFlops(
        per_token=_cost(layers),
        per_squared_token=6.0 * embeddings.shape[1] * num_layers(model, family),
        per_image_token=_cost(projector) + tower_cost * tower_runs,
        per_label=_cost(head),
    )


def _cost(module: nn.Module) -> float:
    return sum(parameter.numel() * _passes(parameter, path=True) for parameter in module.parameters())


def _passes(parameter: Tensor, *, path: bool) -> float:
    """FLOPs per parameter and token: forward, backward where the gradient passes, and of the weight where it trains."""
    return 2.0 + 2.0 * path + 2.0 * parameter.requires_grad


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3) -> float:
    """FLOPs per second of a large square matrix product: the best of what fits into `seconds`."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def peak_device_mib(device: torch.device) -> float | None:
    """The most memory that tensors held on a CUDA device, in MiB; None on a CPU, see `tga.resources`."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
