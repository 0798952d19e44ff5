"""The training step: one multimodal forward, the text targets beside it, the LM loss and the alignment objectives.

    states = hidden states of the multimodal forward at the union of the objectives' layers
    image [layers, batch, width]    = mean over the image tokens, with gradient
    caption, retrieved (same shape) = mean over the text fed to the LLM alone, no gradient
    loss = lm_weight * LM loss on label positions + sum of the objectives' (already weighted) terms

`step_losses` is a plain function of the module, so that a test can call it without a trainer. The layer numbers are
those of `tga.vlm.hidden_states`: 0 = input embeddings, 1..L = output of decoder layer l, un-normed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from tga.alignment.objective import Objective, PooledSpans
from tga.data.collate import Batch
from tga.errors import UserError
from tga.training.checkpoint import MODEL_PREFIX, require_same, trainable_parameters
from tga.training.spans import pooled_spans
from tga.vlm.families import Family
from tga.vlm.hidden_states import multimodal_hidden_states
from tga.vlm.lm_loss import lm_loss


class AlignmentModule(lightning.LightningModule):
    """A VLM whose unfrozen parts learn from the LM loss and any number of alignment objectives.

    Args:
        model: the VLM, already frozen where it shall not train.
        family: where its parts are.
        objectives: may be empty (the baseline).
        total_steps: optimiser steps of the whole run: schedules and progress go by it.
        warmup_steps: of a linear warm-up, followed by a cosine down to `min_lr_ratio * learning_rate`.
        lm_weight: factor of the LM loss; 0 leaves it out.
        centre: `[layers, width]` that an objective subtracts; kept here only to travel with the checkpoint.
        gradient_norm_every: optimiser steps between measurements of the norm of the objectives' gradient with respect
            to the trainable parameters (the first step is always measured); 0 never measures.
        hyper_parameters: a plain dict stored in each checkpoint (`base_model` names the frozen parts).
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        objectives: Sequence[Objective],
        *,
        learning_rate: float,
        total_steps: int,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        min_lr_ratio: float = 0.0,
        lm_weight: float = 1.0,
        centre: Tensor | None = None,
        gradient_norm_every: int = 50,
        hyper_parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # only what trains is in a checkpoint: on_load_checkpoint is strict about that
        self.model, self.family, self.objectives = model, family, list(objectives)
        self.layers = tuple(sorted({layer for objective in objectives for layer in objective.layers}))
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, betas
        self.warmup_steps, self.total_steps, self.min_lr_ratio = warmup_steps, total_steps, min_lr_ratio
        self.lm_weight, self.gradient_norm_every = lm_weight, gradient_norm_every
        self.guide_gradient_norm = math.nan
        self.plain_hyper_parameters = dict(hyper_parameters or {})
        self.centre: Tensor | None
        self.register_buffer("centre", centre)

    def step_losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named weighted scalars; their sum is the loss; "lm" is the LM loss, the others are the objectives'."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.pixel_values is not None:
            inputs["pixel_values"] = batch.pixel_values
        last_hidden, states = multimodal_hidden_states(self.model, self.family, self.layers, **inputs)
        losses: dict[str, Tensor] = {}
        if self.lm_weight:
            losses["lm"] = self.lm_weight * lm_loss(self.model, self.family, last_hidden, batch.labels)
        if self.objectives:
            spans = pooled_spans(self.model, self.family, batch, states, self.layers)
            for objective in self.objectives:
                losses.update(_named(objective, spans.select(objective.layers), progress, losses))
        return losses

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """The loss and its detached terms.

        Raises:
            UserError: a term is not finite; the message names the terms and the samples.
        """
        losses = self.step_losses(batch, self.global_step / max(1, self.total_steps))
        total = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(total):
            raise _not_finite(losses, batch.ids, self.global_step)
        if self._gradient_norm_is_due():
            self.guide_gradient_norm = self.measure_guide_gradient(losses)
        return {"loss": total, "terms": {name: value.detach() for name, value in losses.items()}}

    def measure_guide_gradient(self, losses: Mapping[str, Tensor]) -> float:
        """Norm of the gradient of all terms but the LM loss with respect to the trainable parameters."""
        guide = [value for name, value in losses.items() if name != "lm" and value.requires_grad]
        if not guide:
            return 0.0
        parameters = list(trainable_parameters(self.model).values())
        scaled = torch.stack(guide).sum()
        gradients = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
        return float(torch.stack([g.float().norm() for g in gradients if g is not None]).norm())

    def _gradient_norm_is_due(self) -> bool:
        if not self.objectives or not self.gradient_norm_every:
            return False
        return math.isnan(self.guide_gradient_norm) or self.global_step % self.gradient_norm_every == 0

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what trains, with warm-up and cosine by optimiser step.

        `total_steps` is ours: reading `estimated_stepping_batches` here would drop the data position of a resumed run.
        """
        parameters = list(trainable_parameters(self.model).values())
        optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, foreach=True
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate_factor(self, step: int) -> float:
        """Share of the learning rate at an optimiser step from 0: linear to 1, then half a cosine to `min_lr_ratio`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        after = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, after)))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains (and the centre), and the plain hyper-parameters."""
        state: dict[str, Tensor] = {
            MODEL_PREFIX + name: value.detach() for name, value in trainable_parameters(self.model).items()
        }
        if self.centre is not None:
            state["centre"] = self.centre
        checkpoint["state_dict"] = state
        checkpoint["hyper_parameters"] = self.plain_hyper_parameters

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose names or shapes are not those of what trains here."""
        expected: dict[str, Tensor] = {
            MODEL_PREFIX + name: value for name, value in trainable_parameters(self.model).items()
        }
        if self.centre is not None:
            expected["centre"] = self.centre
        require_same(checkpoint["state_dict"], expected, source=f"a run with {checkpoint.get('hyper_parameters')}")


def _named(objective: Objective, spans: PooledSpans, progress: float, taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One objective's terms; two objectives with a term of the same name would hide each other."""
    terms = objective.losses(spans, progress)
    if clash := set(terms) & set(taken):
        raise UserError(
            "Two objectives have terms of the same name", given=sorted(clash), remedy="list each objective once"
        )
    return terms


def _not_finite(losses: Mapping[str, Tensor], ids: Sequence[str], step: int) -> UserError:
    values = ", ".join(f"{name}={value.item():g}" for name, value in losses.items())
    remedy = "training.learning_rate lower, or look at these samples (an empty answer, a broken picture)"
    return UserError(f"The loss is not finite at step {step} ({values})", given=f"samples {list(ids)}", remedy=remedy)
