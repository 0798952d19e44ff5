"""When checkpoints are written, and what is put back when a run continues.

Files are `step-<steps, eight digits>.ckpt`, written beside their place and renamed: whatever has such a name is
complete, and the highest is the last. A kill at any moment loses the steps since then and nothing else.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from tga.files import atomic_path
from tga.run_files import checkpoints_in


class SaveCheckpoints(lightning.Callback):
    """Write a checkpoint every `every_steps` optimiser steps and at the end, and keep the newest `keep`.

    `written` is the newest of this run, None before the first. The callback's own state is the state of the random
    generators, so that it travels in the same file. With `weights_only` a checkpoint has no optimiser state.
    """

    def __init__(self, directory: Path, *, every_steps: int, keep: int, weights_only: bool = False) -> None:
        self.directory, self.every_steps, self.keep = Path(directory), every_steps, keep
        self.weights_only = weights_only
        self.written: Path | None = None
        self._saved_at = 0
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put the random generators back, late: building the trainer and the loader may draw from them."""
        self._saved_at = trainer.global_step
        if self._restored is not None:
            _restore_random_state(self._restored)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, once per optimiser step; always at the last one."""
        step = trainer.global_step
        last = trainer.is_last_batch
        if step != self._saved_at and (last or (self.every_steps and step % self.every_steps == 0)):
            self._save(trainer, step)

    def _save(self, trainer: lightning.Trainer, step: int) -> None:
        target = self.directory / f"step-{step:08d}.ckpt"
        self._saved_at, self.written = step, target
        if self.weights_only:
            self._save_weights(trainer, target)
            return
        if not trainer.is_global_zero:
            trainer.save_checkpoint(target, weights_only=False)  # gives its share of the weights, and writes nothing
            return
        with atomic_path(target) as path:
            trainer.save_checkpoint(path, weights_only=False)
        self._remove_older()

    def _save_weights(self, trainer: lightning.Trainer, target: Path) -> None:
        """What can be exported and not be continued: DeepSpeed alone can write its optimiser's states."""
        if trainer.is_global_zero:
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
            with atomic_path(target) as path:
                torch.save(content, path)
            self._remove_older()

    def _remove_older(self) -> None:
        for old in checkpoints_in(self.directory)[: -self.keep]:
            old.unlink()

    def state_dict(self) -> dict[str, Any]:
        """The random generators' states, as tensors and plain values."""
        return _random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the training starts."""
        self._restored = state_dict


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
