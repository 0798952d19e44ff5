"""What the projector takes of each picture, computed once before the first step and kept in memory.

The vision tower is frozen, so a picture gives the projector the same features in every epoch. A training of several
epochs over pictures whose features fit into memory (2.4 MB a picture of LLaVA-1.5 in float32)
then neither decodes a picture nor runs the tower again. While it trains, a stand-in takes the tower's place: batches
bring features where they bring pixels otherwise. Losses are the same up to the rounding of sums in other batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tga.data.collate import Collator
from tga.data.picture import Picture
from tga.data.sample import Sample
from tga.errors import UserError
from tga.training.distributed import SHARED_OUT
from tga.vlm.families import Family, component
from tga.vlm.image_tokens import projector_inputs

BATCH_SIZE = 64
MOST_OF_MEMORY = 0.5  # of the machine's, that features may take


class StoredFeatures:
    """Features by picture; empty until :meth:`fill` has run.

    Args:
        samples: all that will be asked for.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._rows: dict[Picture, int] = {}
        self._names: list[str] = []  # the id of a sample with each picture, which an error can name
        for sample in samples:
            for picture in sample.images:
                if picture not in self._rows:
                    self._rows[picture] = len(self._rows)
                    self._names.append(sample.id)
        self._features: Tensor | None = None

    def __len__(self) -> int:
        """Different pictures."""
        return len(self._rows)

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """`[pictures, image tokens, vision width]`, on the CPU, in the dtype in which the tower gives them."""
        assert self._features is not None  # the run fills it before its first batch
        return self._features[[self._rows[picture] for picture in pictures]]

    @torch.no_grad()
    def fill(
        self,
        model: Any,
        family: Family,
        collator: Collator,
        *,
        precision: str,
        processes_here: int = 1,
        quiet: bool = False,
    ) -> None:
        """Run the tower over every picture, on its own device, as a training in `precision` would.

        Args:
            processes_here: that hold all features on this machine, each its own.

        Raises:
            UserError: a picture that cannot be read, or features that do not fit into memory; told before the second
                batch.
        """
        pictures = list(self._rows)
        device = next(component(model, family.vision_tower).parameters()).device
        with tqdm(total=len(pictures), desc="vision features", unit="picture", disable=quiet) as bar:
            for start in range(0, len(pictures), BATCH_SIZE):
                part = pictures[start : start + BATCH_SIZE]
                pixels = collator.pixels(part, self._names[start : start + BATCH_SIZE])
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                    found = projector_inputs(model, family, pixels).cpu()
                if self._features is None:
                    require_memory(len(pictures), found[0].numel() * found.element_size(), processes_here)
                    self._features = torch.empty(len(pictures), *found.shape[1:], dtype=found.dtype)
                self._features[start : start + len(part)] = found
                bar.update(len(part))


def check_stored_features(family: Family, layer: Any, train: Sequence[str], strategy: str) -> None:
    """Refuse a run whose features cannot be computed once.

    Args:
        layer: the config's `vision_feature_layer`.

    Raises:
        UserError: the tower trains; a family whose projector takes more than one tensor of a picture; shared weights.
    """
    remedy = "model.vision_features=online"
    if "vision_tower" in train:
        given = f"model.train={list(train)}"
        raise UserError(
            "Stored vision features hold for a frozen tower, and here it trains", given=given, remedy=remedy
        )
    if family.name != "llava" or not isinstance(layer, int):
        given = family.name if family.name != "llava" else f"features of the layers {layer}"
        allowed = "llava, with features of one layer"
        raise UserError("Vision features of this model cannot be stored", given=given, allowed=allowed, remedy=remedy)
    if strategy in SHARED_OUT:
        given = f"training.strategy={strategy}"
        problem = "Stored vision features leave the tower out, and this strategy shares it out between processes"
        raise UserError(problem, given=given, allowed="single, ddp", remedy=f"{remedy}, or training=ddp")


@contextmanager
def tower_left_out(model: nn.Module, family: Family) -> Iterator[None]:
    """While the block runs, the model's forward takes features of :class:`StoredFeatures` as its `pixel_values`."""
    parent_path, _, name = family.vision_tower.rpartition(".")
    parent, tower = component(model, parent_path), component(model, family.vision_tower)
    config: Any = model.config
    layers = config.vision_config.num_hidden_layers + 1
    stand_in = _StandIn(layers, has_class_token=config.vision_feature_select_strategy == "default")
    setattr(parent, name, stand_in)
    try:
        yield
    finally:
        setattr(parent, name, tower)


class _StandIn(nn.Module):
    """Answers as a vision tower whose hidden states are all the features that it is given."""

    def __init__(self, layers: int, *, has_class_token: bool) -> None:
        super().__init__()
        self._layers, self._has_class_token = layers, has_class_token

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Features `[pictures, tokens, width]`; where the model drops a class token, one is put there for it."""
        states = torch.cat([pixel_values[:, :1], pixel_values], dim=1) if self._has_class_token else pixel_values
        return BaseModelOutputWithPooling(last_hidden_state=states, hidden_states=(states,) * self._layers)


def require_memory(pictures: int, bytes_each: int, processes_here: int) -> None:
    """Refuse features that would take more than half of the machine's memory.

    Raises:
        UserError: saying how much they take and how much there is.
    """
    needed, has = pictures * bytes_each * processes_here, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MOST_OF_MEMORY * has:
        in_all = f" in each of {processes_here} processes" if processes_here > 1 else ""
        raise UserError(
            "Stored vision features would take too much memory",
            given=f"{needed / 2**30:.1f} GiB for {pictures:,} pictures{in_all}; the machine has {has / 2**30:.1f} GiB",
            allowed=f"{MOST_OF_MEMORY:.0%} of it",
            remedy="model.vision_features=online",
        )
