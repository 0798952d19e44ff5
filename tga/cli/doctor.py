"""tga-doctor: is everything there that tga needs, and will this run start? All problems at once, exit code 1 if any."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from tga.cli.common import hydra_command, plain
from tga.cli.data import read_samples
from tga.cli.environment import environment
from tga.cli.half_precision import bfloat16_on_cpu
from tga.cli.preflight import Checked, preflight
from tga.cli.setting_checks import setting_problems
from tga.errors import UserError
from tga.terminal import literal, literal_lines


@hydra_command("doctor", missing_allowed=True, values_checked=False)
def main(config: DictConfig) -> None:
    """Look, print, and leave with exit code 1 where there is a problem."""
    here, console = Checked(), Console()
    for finding in environment():
        here.take(finding)
    _print_facts(console, "Environment", here.facts)
    run = _check_run(config)
    if run is not None:
        _print_facts(console, "Run", run.facts)
        here.warnings += run.warnings
        here.problems += run.problems
    for warning in here.warnings:
        console.print(literal_lines(f"Warning: {warning}"), soft_wrap=True)
    for number, problem in enumerate(here.problems, start=1):
        console.print(literal_lines(f"Problem {number}: {problem}"), soft_wrap=True)
    if here.problems:
        sys.exit(1)
    console.print("No problems found.")


def _check_run(config: DictConfig) -> Checked | None:
    """The run that the arguments describe, as far as they do; None where they say nothing of one."""
    chosen = HydraConfig.get().overrides.task
    if not chosen:
        return None
    missing = sorted(OmegaConf.missing_keys(config))
    model_missing = [key for key in missing if key.startswith("model.")]
    only_data = bool(model_missing) and not any(text.lstrip("+").startswith(("model", "experiment")) for text in chosen)
    wanted = [key for key in missing if not (only_data and key in model_missing)]
    if wanted:
        found = Checked()
        remedy = " ".join(f"{key}=VALUE" for key in wanted)
        found.problems.append(UserError("Values without a default are missing", given=wanted, remedy=remedy))
        return found
    if only_data:
        return _check_data(OmegaConf.to_container(config.data, resolve=True))
    values = plain(config)
    if (waiting := _to_be_written(values)) is not None:
        found = Checked(setting_problems(values))
        found.facts.append(("prepare", f"the run writes its model and data to {waiting} when it starts"))
    else:
        found = preflight(values)
    if (half := bfloat16_on_cpu(values)) is not None:
        found.take(half)
    return found


def _check_data(data: Any) -> Checked:
    """A data set alone, as the training would read it."""
    checked = Checked()
    samples = checked.ask(read_samples, data)
    if samples is not None:
        pictured = sum(bool(sample.images) for sample in samples)
        checked.facts.append(("samples", f"{len(samples):,}, {pictured:,} with a picture"))
    return checked


def _to_be_written(values: dict[str, Any]) -> Path | None:
    """Where the run would first write what it reads, and has not yet."""
    prepared = values["prepare"]
    if prepared.get("world") is None or Path(prepared["root"]).exists():
        return None
    return Path(prepared["root"]).absolute()


def _print_facts(console: Console, title: str, facts: Sequence[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, found in facts:
        table.add_row(literal(name), literal_lines(found))
    console.print(table)


if __name__ == "__main__":
    main()
