"""The training step: one multimodal forward, the text targets beside it, the LM loss and the alignment objectives.

    states = hidden states of the multimodal forward at the union of the objectives' layers
    image [layers, batch, width]    = mean over the image tokens, with gradient
    caption, retrieved (same shape) = (weighted) mean over the text fed to the LLM alone, no gradient
    tokens [batch, tokens, width]   = image and caption tokens one by one, at the layers where an objective needs them
    loss = lm_weight * LM loss on label positions + sum of the objectives' (already weighted) terms

An objective with a state observes each training step before its terms are computed. `step_losses` observes nothing:
it is a plain function of the module, so that a test can call it without a trainer. The layer numbers are those of
`tga.vlm.hidden_states`: 0 = input embeddings, 1..L = output of decoder layer l, un-normed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from tga.alignment.objective import Objective, Spans, StatefulObjective
from tga.data.collate import Batch
from tga.errors import UserError
from tga.training.checkpoint import MODEL_PREFIX, require_same, trainable_parameters
from tga.training.distributed import shard
from tga.training.optimiser import adamw, parameter_groups
from tga.training.spans import batch_spans
from tga.vlm.families import Family, component
from tga.vlm.hidden_states import multimodal_hidden_states
from tga.vlm.lm_loss import lm_loss


@dataclass(frozen=True)
class Forward:
    """A forward pass: the LM loss, unweighted (None where it has no weight); the spans (None without objectives)."""

    lm_loss: Tensor | None
    spans: Spans | None


class AlignmentModule(lightning.LightningModule):
    """A VLM whose unfrozen parts learn from the LM loss and any number of alignment objectives.

    Args:
        model: the VLM, already frozen where it shall not train.
        family: where its parts are.
        objectives: may be empty (the baseline).
        total_steps: optimiser steps of the whole run: schedules and progress go by it.
        projector_learning_rate: None where it is that of the rest.
        warmup_steps: of a linear warm-up, followed by a cosine down to `min_lr_ratio * learning_rate`.
        lm_weight: factor of the LM loss; 0 leaves it out.
        centre: `[layers, width]` that an objective subtracts; kept here only to travel with the checkpoint.
        token_weights: `[vocabulary]`, of a text's tokens in its pooled state; None: all weigh the same.
        gradient_norm_every: optimiser steps between measurements of the norm of the objectives' gradient with respect
            to the trainable parameters (every step is measured until one is not 0, as while a warm-up begins); 0 never
            measures.
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
        projector_learning_rate: float | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        min_lr_ratio: float = 0.0,
        lm_weight: float = 1.0,
        centre: Tensor | None = None,
        token_weights: Tensor | None = None,
        gradient_norm_every: int = 50,
        hyper_parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # only what trains is in a checkpoint: on_load_checkpoint is strict about that
        self.model, self.family, self.objectives = model, family, list(objectives)
        self.layers = tuple(sorted({layer for objective in objectives for layer in objective.layers}))
        self.token_layers = tuple(sorted({layer for objective in objectives for layer in objective.token_layers}))
        self.learning_rate, self.projector_learning_rate = learning_rate, projector_learning_rate
        self.weight_decay, self.betas = weight_decay, betas
        self.warmup_steps, self.total_steps, self.min_lr_ratio = warmup_steps, total_steps, min_lr_ratio
        self.lm_weight, self.gradient_norm_every = lm_weight, gradient_norm_every
        self.guide_gradient_norm = math.nan
        self.plain_hyper_parameters = dict(hyper_parameters or {})
        self.centre: Tensor | None
        self.register_buffer("centre", centre)
        self.token_weights = token_weights  # no buffer: those are cast, and sent to all processes at each step

    def configure_model(self) -> None:
        """Share the weights out where the strategy has made a mesh of processes for it (FSDP2)."""
        if self._device_mesh is not None:
            layers = component(self.model, self.family.decoder_layers)
            assert isinstance(layers, nn.ModuleList)
            shard(self.model, list(layers), self._device_mesh["data_parallel"])

    def step_losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named weighted scalars; their sum is the loss; "lm" is the LM loss, the others are the objectives'."""
        return self._losses(self._run(batch), progress)

    def _run(self, batch: Batch) -> Forward:
        wanted = {*self.layers, *self.token_layers}
        last_hidden, states = multimodal_hidden_states(self.model, self.family, wanted, **batch.model_inputs())
        lm = lm_loss(self.model, self.family, last_hidden, batch.labels) if self.lm_weight else None
        if not self.objectives:
            return Forward(lm, None)
        if self.token_weights is not None:
            self.token_weights = self.token_weights.to(batch.input_ids.device)
        layers, token_layers, weights = self.layers, self.token_layers, self.token_weights
        return Forward(lm, batch_spans(self.model, self.family, batch, states, layers, token_layers, weights))

    def _losses(self, forward: Forward, progress: float) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if forward.lm_loss is not None:
            losses["lm"] = self.lm_weight * forward.lm_loss
        for objective in self.objectives:
            assert forward.spans is not None
            losses.update(_named(objective, forward.spans, progress, losses))
        return losses

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """The loss, its detached terms, and the objectives' figures.

        Raises:
            UserError: a term is not finite; the message names the terms and the samples.
        """
        progress = self.global_step / max(1, self.total_steps)
        forward = self._run(batch)
        figures: dict[str, Tensor] = {}
        if forward.spans is not None:
            lm = None if forward.lm_loss is None else forward.lm_loss.detach()
            for objective in self.objectives:
                if isinstance(objective, StatefulObjective):
                    objective.observe(lm, forward.spans, progress)
                figures |= objective.figures(forward.spans)
        losses = self._losses(forward, progress)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(total):
            raise _not_finite(losses, batch.ids, self.global_step)
        if self._gradient_norm_is_due():
            self.guide_gradient_norm = self.measure_guide_gradient(losses)
        terms = {name: value.detach() for name, value in losses.items()}
        return {"loss": total, "terms": terms, "figures": figures}

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
        measured = self.guide_gradient_norm > 0  # neither NaN, before the first one, nor 0, while a warm-up begins
        return not measured or self.global_step % self.gradient_norm_every == 0

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what trains, with warm-up and cosine by optimiser step.

        `total_steps` is ours: reading `estimated_stepping_batches` here would drop the data position of a resumed run.
        """
        groups = parameter_groups(self.model, self.family, self.learning_rate, self.projector_learning_rate)
        optimizer = adamw(groups, betas=self.betas, weight_decay=self.weight_decay)
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
        """Keep what trains (and the centre), the objectives' states, and the plain hyper-parameters."""
        kept = [MODEL_PREFIX + name for name in trainable_parameters(self.model)]
        kept += ["centre"] if self.centre is not None else []
        state = checkpoint["state_dict"]  # of sharded weights the whole, on the first process; empty on the others
        checkpoint["state_dict"] = {name: state[name] for name in kept if name in state}
        checkpoint["hyper_parameters"] = self.plain_hyper_parameters
        checkpoint["objectives"] = {name: objective.state_dict() for name, objective in self._stateful().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose names or shapes are not those of what trains here; restore the objectives."""
        expected: dict[str, Tensor] = {
            MODEL_PREFIX + name: value for name, value in trainable_parameters(self.model).items()
        }
        if self.centre is not None:
            expected["centre"] = self.centre
        if "state_dict" in checkpoint:  # of shared-out weights the strategy has taken it, and `fit` has compared them
            require_same(checkpoint["state_dict"], expected, source=f"a run with {checkpoint.get('hyper_parameters')}")
        kept, stateful = checkpoint.get("objectives", {}), self._stateful()
        if set(kept) != set(stateful):
            raise UserError(
                "The checkpoint was trained with other objectives",
                given=sorted(kept),
                allowed=str(sorted(stateful)),
                remedy="alignment=NAME of the run to continue, or start a new run",
            )
        for name, objective in stateful.items():
            objective.load_state_dict(kept[name])

    @property
    def figure_names(self) -> tuple[str, ...]:
        """Names of all that the objectives log beside their terms."""
        return tuple(name for objective in self.objectives for name in objective.figure_names)

    def _stateful(self) -> dict[str, StatefulObjective]:
        """The objectives with a state by the name of their class; two of one class would have terms of one name."""
        return {type(o).__name__: o for o in self.objectives if isinstance(o, StatefulObjective)}


def _named(objective: Objective, spans: Spans, progress: float, taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
