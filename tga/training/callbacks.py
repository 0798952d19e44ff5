"""What a run says while it trains: metrics.jsonl, the progress bar, and the table of frozen and trained parts."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from tga.data.collate import Batch
from tga.files import atomic_path
from tga.resources import peak_rss_mib
from tga.terminal import literal
from tga.training.distributed import means, total
from tga.training.throughput import Throughput


class MetricsFile(lightning.Callback):
    """One JSON row per `every` optimiser steps: loss, terms, figures, learning rate, samples/s, gradient norm, memory.

    The row of step n belongs to the n-th update, counted from 1; losses and figures are means over the batches that
    the step accumulates and over all processes. A run that continues from step n first drops rows beyond it, which the
    killed process may have written. Loggers of the trainer get the same rows.
    """

    def __init__(self, path: Path, throughput: Throughput, *, every: int) -> None:
        self.path, self.throughput, self.every = Path(path), throughput, every
        self._done = 0
        self._parts: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop rows of steps that will be done again, and a last row that a kill cut short."""
        self._done = trainer.global_step
        if not trainer.is_global_zero:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= trainer.global_step]
        with atomic_path(self.path) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Take the batch into its step's means, and append a row when the step is complete and due."""
        terms: dict[str, Tensor] = {f"loss_{name}": value for name, value in outputs["terms"].items()}
        loss = torch.stack([value.float() for value in terms.values()]).sum()  # `outputs` has it over what accumulates
        self._parts.append({"loss": loss, **terms, **outputs["figures"]})
        step = trainer.global_step
        if step == self._done:
            return
        self._done, parts, self._parts = step, self._parts, []
        if not (step % self.every == 0 or step == 1 or trainer.is_last_batch):
            return
        samples = int(total(self.throughput.samples, pl_module.device))
        row: dict[str, float] = {"step": step, "samples": samples}
        row |= {name: value for name, value in means(parts).items() if not math.isnan(value)}
        row["learning_rate"] = pl_module.learning_rate * pl_module.learning_rate_factor(step - 1)
        row["samples_per_s"] = round(samples / self.throughput.seconds, 3)
        row["peak_rss_mib"] = round(peak_rss_mib(), 1)
        if pl_module.objectives and pl_module.gradient_norm_every:
            row["guide_gradient_norm"] = pl_module.guide_gradient_norm
        if trainer.is_global_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for logger in trainer.loggers:
                logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=step)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics file, empty without a file; a last line without its end is left out."""
    if not Path(path).is_file():
        return []
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class ProgressBar(lightning.Callback):
    """Steps, loss terms, figures (the cosines among them), samples/s and the time left.

    A bar on a terminal, a line every `line_every_s` seconds elsewhere.
    """

    def __init__(
        self, throughput: Throughput, total_steps: int, *, console: Console, line_every_s: float = 20.0
    ) -> None:
        self.throughput, self.total_steps, self.console, self.line_every_s = (
            throughput,
            total_steps,
            console,
            line_every_s,
        )
        self._bar: Progress | None = None
        self._task: Any = None
        self._last_shown = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the bar where somebody sees it."""
        self._last_shown = time.perf_counter()
        self._first_step = trainer.global_step
        if self.console.is_terminal:
            columns = (
                TextColumn("training"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
            )  # fmt: skip
            self._bar = Progress(*columns, console=self.console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=self.total_steps, completed=trainer.global_step, text="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh at most every quarter of a second: reading a loss waits for the device."""
        now = time.perf_counter()
        interval = 0.25 if self._bar is not None else self.line_every_s
        if now - self._last_shown < interval and not trainer.is_last_batch:
            return
        self._last_shown = now
        shown = {name: value.item() for name, value in {**outputs["terms"], **outputs["figures"]}.items()}
        text = " ".join(f"{name} {value:.3f}" for name, value in shown.items() if not math.isnan(value))
        text += f"  {self.throughput.samples_per_s:.1f} samples/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, text=text)
            return
        line = f"step {trainer.global_step}/{self.total_steps}  {text}  {self._time_left(trainer.global_step)}"
        self.console.print(literal(line), soft_wrap=True)

    def _time_left(self, step: int) -> str:
        """At the pace since this process started, `ETA 1:02:03`."""
        done = step - self._first_step
        if not done:
            return "ETA -:--:--"
        return f"ETA {timedelta(seconds=round(self.throughput.seconds / done * max(0, self.total_steps - step)))}"

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is printed."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def parts_table(rows: Sequence[tuple[str, int, int]]) -> Table:
    """A rich table of (part, trainable, frozen) parameter counts, with their sums."""
    table = Table(title="Parts of the model")
    table.add_column("part")
    table.add_column("trained", justify="right")
    table.add_column("frozen", justify="right")
    for part, trained, frozen in [*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows))]:
        table.add_row(part, f"{trained:,}", f"{frozen:,}")
    return table


def terminal() -> Console:
    """A console on stderr, so that stdout stays for results; COLUMNS decides the width where there is no terminal."""
    return Console(stderr=True, width=None if sys.stderr.isatty() or "COLUMNS" in os.environ else 120)
