"""Stop at the first gradient that is not a number, and say over which samples."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from tga.data.collate import Batch
from tga.errors import UserError
from tga.training.checkpoint import trainable_parameters


class FiniteGradients(lightning.Callback):
    """Checks the gradients before each optimiser step: a finite loss may have a gradient that is not.

    Weights that became NaN would otherwise show in the next loss, at samples that are not to blame. (A loss that is
    not finite stops the step itself, see `tga.training.module`; under DeepSpeed that check is the only one.)
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._trained: dict[str, torch.nn.Parameter] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Find what trains: to walk through all parameters takes as long as a small model's optimiser step."""
        self._trained = trainable_parameters(pl_module.model)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Remember the samples of the step."""
        self._ids.extend(batch.ids)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check, before the gradients are clipped, and forget the samples.

        Raises:
            UserError: with the parameters' and the samples' names.
        """
        gradients = {name: p.grad for name, p in self._trained.items() if p.grad is not None}
        ids, self._ids = self._ids, []
        if not gradients:  # DeepSpeed takes them away into buffers of its own as soon as they are there
            return
        finite = [torch.isfinite(norm) for norm in torch._foreach_norm(list(gradients.values()))]
        if not torch.stack(finite).all():
            wrong = [name for name, good in zip(gradients, finite, strict=True) if not good]
            raise UserError(
                f"The gradient is not finite at step {trainer.global_step} ({', '.join(wrong[:4])})",
                given=f"samples {ids}",
                remedy="training.learning_rate lower, training.gradient_clip_norm=1.0, or look at these samples",
            )
