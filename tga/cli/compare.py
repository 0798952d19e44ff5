"""tga-compare: methods x seeds, each one run of tga-train; means and paired differences with 95 % intervals.

A method may also be a variant, a trained method under further overrides of tga-train, or a steered one: the checkpoint
of a trained method under further overrides of tga-evaluate.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from retrieval_index.visible_text import visible
from tga.cli.common import hydra_command, plain, prepare, start_run, write_summary
from tga.cli.comparison_plan import RUNS, check_comparison, plan_runs
from tga.cli.comparison_report import Results, read_results, write_report
from tga.cli.locks import claimed
from tga.cli.run_directory import run_directory
from tga.errors import UserError
from tga.evaluation.cell_runs import Outcome, run_cells
from tga.evaluation.cells import LOG, Cell, cell_step, cell_summary, reason_to_run
from tga.evaluation.comparison import bootstrap_values, comparison_values, numbers_only
from tga.evaluation.report import value_text
from tga.terminal import say

SHOWN = ("image_dsr", "over_refusal", "caption_accuracy", "vqa_accuracy", "train_s", "total_s")


@hydra_command("compare")
def main(config: DictConfig) -> Path:
    """Run what is missing, then write summary.json, table.md and report.html."""
    started = time.perf_counter()
    values = plain(config)
    check_comparison(values)
    run_dir, report_dir = (Path(values[key]).absolute() for key in ("run_dir", "report_dir"))
    planned = plan_runs(values, list(HydraConfig.get().overrides.task), run_dir)
    with ExitStack() as claims:
        if report_dir != run_dir:
            claims.enter_context(claimed(run_dir))
        claims.enter_context(run_directory(report_dir, option="run_dir" if report_dir == run_dir else "report_dir"))
        prepare(config)  # what the runs read must be there before it is known whether it has changed
        cells = [run.cell() for run in planned]
        missing = _missing(cells, fresh=values["fresh"])
        start_run(config, report_dir)
        _run(missing, values["jobs"])
        results = read_results(cells, values)
        write_report(report_dir, results, values, runs=run_dir / RUNS)
        summary = _summary(results, values) | {"runs": len(cells), "runs_reused": len(cells) - len(missing)}
        write_summary(report_dir, {**summary, "total_s": round(time.perf_counter() - started, 3)}, config)
    return report_dir


def _missing(cells: Sequence[Cell], *, fresh: bool) -> list[Cell]:
    """The cells that have to run; says why those run again that have been run before."""
    missing: list[Cell] = []
    again = []
    for cell in sorted(cells, key=lambda cell: cell.after is not None):  # those that others read first
        reason = "fresh=true" if fresh else reason_to_run(cell)
        if reason is None and cell.after is not None and cell.after in missing:
            reason = f"{cell.after.name} runs again"
        if reason is not None:
            missing.append(cell)
            if not fresh and cell_summary(cell) is not None:
                again.append(f"{cell.name} runs again: {reason}")
    if len(missing) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} runs are there already (fresh=true runs them again).")
    for line in again:
        say(line)
    return [cell for cell in cells if cell in missing]


def _run(cells: Sequence[Cell], jobs: int) -> None:
    """Run the cells with a progress bar; UserError that names each failed one, after all have ended."""
    if not cells:
        return
    threads = threads_of_each(min(jobs, len(cells)))
    with tqdm(total=len(cells), desc="runs", unit="run") as bar:
        bar.write(f"{len(cells)} runs, {min(jobs, len(cells))} at a time with {threads} threads each; logs: */{LOG}")

        def on_end(outcome: Outcome) -> None:
            bar.write(visible(_line(outcome)))
            bar.update()

        def on_wait(running: list[Cell]) -> None:
            steps = [cell.name + (f" at step {at}" if (at := cell_step(cell)) else "") for cell in running]
            bar.set_postfix_str(visible("; ".join(steps)))

        outcomes = run_cells(cells, jobs=jobs, threads=threads, on_end=on_end, on_wait=on_wait)
    failed = [outcome for outcome in outcomes if outcome.code != 0]
    if failed:
        said = [f"{o.cell.name}: exit code {o.code}, {o.cell.directory / LOG}: {o.tail}" for o in failed[:3]]
        raise UserError(
            f"{len(failed)} of {len(cells)} runs failed; the others are kept. {'; '.join(said)}",
            remedy=f"mend the cause and call this again; the first one alone: {shlex.join(failed[0].cell.command)}",
        )


def threads_of_each(jobs: int) -> int:
    """An equal share of the cores, and no more than OMP_NUM_THREADS where that is set."""
    share = (os.cpu_count() or 1) // jobs
    return max(1, min(share, int(os.environ.get("OMP_NUM_THREADS") or share)))


def _line(outcome: Outcome) -> str:
    """One line on a run that ended."""
    if outcome.code != 0:
        return f"{outcome.cell.name}: failed with exit code {outcome.code}"
    summary = numbers_only(cell_summary(outcome.cell) or {})
    figures = [f"{key} {value_text(summary[key], key)}" for key in SHOWN if key in summary]
    return f"{outcome.cell.name}: {', '.join(figures)}"


def _summary(results: Results, values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys: means and differences over seeds, bootstrap intervals, and what was compared."""
    methods, baseline = values["methods"], values["baseline"]
    found: dict[str, Any] = comparison_values(results.numbers, methods, baseline)
    found |= bootstrap_values(results.bootstrap, baseline)
    return found | {"seeds": " ".join(map(str, values["seeds"])), "methods": " ".join(methods)}


if __name__ == "__main__":
    main()
