"""What tga-train says at its start and at its end: how to go on, the summary, the table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table

from tga.cli.own_processes import started_here
from tga.terminal import literal
from tga.training.distributed import Processes
from tga.training.settings import FitResult

SHOWN = (
    "steps", "samples_per_s", "tokens_per_s", "data_wait_share", "model_flop_utilisation", "guide_gradient_norm",
    "features_s", "train_s", "total_s", "peak_rss_mib", "peak_device_mib",
)  # fmt: skip


def resume_command(run_dir: Path, processes: Processes) -> str:
    """The command line that continues this run; under SLURM what is told is the call of each process."""
    overrides = [
        override
        for override in HydraConfig.get().overrides.task
        if not override.lstrip("+").startswith(("run_dir=", "ckpt_path="))
    ]
    program = ["tga-train"]
    if processes.size > 1 and not started_here():
        nodes = [f"--nnodes={processes.nodes}"] if processes.nodes > 1 else []
        program = ["torchrun", *nodes, f"--nproc-per-node={processes.local_size}", "-m", "tga.cli.train"]
    return shlex.join([*program, *overrides, f"run_dir={run_dir}", "ckpt_path=last"])


def training_summary(result: FitResult, values: Mapping[str, Any], processes: Processes) -> dict[str, Any]:
    """What the training gives to summary.json."""
    norm = result.guide_gradient_norm
    return {
        "method": values["alignment"]["name"],
        "seed": values["seed"],
        "steps": result.steps,
        "samples": result.samples,
        **({} if result.features_s is None else {"features_s": round(result.features_s, 3)}),
        "train_s": round(result.train_s, 3),
        "samples_per_s": round(result.samples_per_s, 3),
        "tokens_per_s": round(result.tokens_per_s, 1),
        "data_wait_share": round(result.data_wait_share, 4),
        "model_flop_utilisation": round(result.model_flop_utilisation, 4),
        "peak_device_mib": None if result.peak_device_mib is None else round(result.peak_device_mib, 1),
        "processes": processes.size,
        "guide_gradient_norm": None if math.isnan(norm) else norm,
        "trainable_parameters": result.trainable_parameters,
        **result.losses,
        **result.figures,
    }


def print_outcome(
    summary: Mapping[str, Any],
    measured: Mapping[str, Any],
    result: FitResult,
    exported: Path | None,
    run_dir: Path,
) -> None:
    """The short table: rates with their intervals, then times, then where things are."""
    console = Console()
    table = Table(title=literal(f"{summary['method']}, seed {summary['seed']}"))
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for key, value in measured.items():
        if f"{key}_low" in measured:
            table.add_row(literal(key), f"{value:.3f}", f"{measured[f'{key}_low']:.3f} - {measured[f'{key}_high']:.3f}")
    for key in SHOWN:
        if summary.get(key) is not None:
            table.add_row(key, f"{summary[key]:.4g}" if isinstance(summary[key], float) else str(summary[key]), "")
    console.print(table)
    places = {"checkpoint": result.checkpoint, "export": exported, "answers": run_dir / "answers.jsonl"}
    places |= {"metrics": run_dir / "metrics.jsonl", "summary": run_dir / "summary.json"}
    for name, path in places.items():
        if path is not None and path.exists():
            console.print(literal(f"{name:<11}{path}"), soft_wrap=True)
