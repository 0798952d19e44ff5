"""tga-compare: methods x seeds, each one run of tga-train; means and paired differences with 95 % intervals."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from tga.cli.common import config_hash, hydra_command, plain, start_run, write_summary
from tga.errors import UserError
from tga.evaluation.cells import LOG, Cell, Outcome, cell_step, cell_summary, run_cells
from tga.evaluation.comparison import (
    SHARED_METRICS,
    comparison_values,
    differences_table,
    means_table,
    notes,
    numbers_only,
)
from tga.evaluation.report import html_report, markdown, print_tables, value_text, write_text

# Keys of compare.yaml itself, and those that each run has of its own.
OWN = ("seeds", "methods", "baseline", "jobs", "fresh", "columns", "run_dir")
PER_RUN = {"seed": "seeds=[0,1,2]", "alignment": "methods=[baseline,tga]", "ckpt_path": "a second call, which goes on"}


@hydra_command("compare")
def main(config: DictConfig) -> Path:
    """Run what is missing, then write summary.json, table.md and report.html."""
    started = time.perf_counter()
    values = plain(config)
    _check(values)
    cells = plan_cells(values, list(HydraConfig.get().overrides.task), Path(values["run_dir"]).absolute())
    run_dir = start_run(config)
    missing = [cell for cell in cells if values["fresh"] or cell_summary(cell) is None]
    if len(missing) < len(cells):
        print(f"{len(cells) - len(missing)} of {len(cells)} runs are there already (fresh=true runs them again).")
    _run(missing, values["jobs"])
    found = {(cell.method, cell.seed): numbers_only(cell_summary(cell) or {}) for cell in cells}
    summary: dict[str, Any] = comparison_values(found, values["methods"], values["baseline"])
    _report(run_dir, found, values)
    summary |= {"runs": len(cells), "runs_reused": len(cells) - len(missing)}
    summary |= {"seeds": " ".join(map(str, values["seeds"])), "methods": " ".join(values["methods"])}
    write_summary(run_dir, {**summary, "total_s": round(time.perf_counter() - started, 3)}, config)
    return run_dir


def plan_cells(values: Mapping[str, Any], overrides: Sequence[str], run_dir: Path) -> list[Cell]:
    """One cell per seed and method; each one's config is composed here, so that mistakes show before any run.

    overrides: those of this command; all that is not its own goes to every run, and `alignment.KEY=...` to the methods
    that have the key. Raises UserError where no method has it.
    """
    passed = _passed_on(overrides)
    general = [override for override in passed if not _key(override).startswith("alignment.")]
    special = [override for override in passed if _key(override).startswith("alignment.")]
    fitting = {method: _fitting(special, [*general, f"alignment={method}"]) for method in values["methods"]}
    unused = [override for override in special if not any(override in kept for kept in fitting.values())]
    if unused:
        raise UserError("No method has this setting", given=unused, remedy="leave it out, or methods=[...]")
    cells = []
    for seed in values["seeds"]:
        for method in values["methods"]:
            directory = run_dir / "runs" / f"{method}-seed{seed}"
            arguments = ["export=null", *general, f"alignment={method}", f"seed={seed}", *fitting[method]]
            arguments.append(f"run_dir={_quoted(directory)}")
            digest = config_hash(compose("train", overrides=arguments))
            cells.append(Cell(method, seed, directory, (sys.executable, "-m", "tga.cli.train", *arguments), digest))
    return cells


def _check(values: Mapping[str, Any]) -> None:
    """Raise one UserError for methods or seeds that cannot be run."""
    known = GlobalHydra.instance().config_loader().get_group_options("alignment", ObjectType.CONFIG)
    unknown = [method for method in values["methods"] if method not in known]
    if unknown:
        allowed = ", ".join(known)
        raise UserError("There is no such method", given=", ".join(unknown), allowed=allowed, remedy="methods=[...]")
    seeds, methods = values["seeds"], values["methods"]
    repeated = len(set(seeds)) < len(seeds) or len(set(methods)) < len(methods)
    if not seeds or not methods or repeated or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UserError(
            "Methods and seeds must be different ones, and at least one each",
            given=f"methods {methods}, seeds {seeds}",
            allowed="names; whole numbers from 0",
            remedy="methods=[baseline,tga] seeds=[0,1,2]",
        )
    if not isinstance(values["jobs"], int) or values["jobs"] < 1:
        raise UserError("At least one run at a time", given=values["jobs"], allowed="1, 2, ...", remedy="jobs=2")


def _passed_on(overrides: Sequence[str]) -> list[str]:
    """This command's overrides without its own keys; UserError for a key that differs between the runs."""
    passed = []
    for override in overrides:
        key = _key(override)
        if key in PER_RUN:
            raise UserError(f"{key} differs between the runs", given=override, remedy=PER_RUN[key])
        if key not in OWN and not key.startswith("hydra"):
            passed.append(override)
    return passed


def _key(override: str) -> str:
    return OverridesParser.create().parse_override(override).key_or_group


def _fitting(special: Sequence[str], base: Sequence[str]) -> list[str]:
    """Those of the overrides whose key the config has, or that add one."""
    if not special:
        return []
    config = compose("train", overrides=list(base))
    fitting = []
    for override in special:
        *parents, last = _key(override).split(".")
        parent = OmegaConf.select(config, ".".join(parents))
        if override.startswith("+") or (isinstance(parent, DictConfig) and last in parent):
            fitting.append(override)
    return fitting


def _quoted(path: Path) -> str:
    """A path as a quoted value of Hydra's override grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _run(cells: Sequence[Cell], jobs: int) -> None:
    """Run the cells with a progress bar; UserError that names each failed one, after all have ended."""
    if not cells:
        return
    threads = max(1, (os.cpu_count() or 1) // min(jobs, len(cells)))
    with tqdm(total=len(cells), desc="runs", unit="run") as bar:
        bar.write(f"{len(cells)} runs, {min(jobs, len(cells))} at a time with {threads} threads each; logs: */{LOG}")

        def on_end(outcome: Outcome) -> None:
            bar.write(_line(outcome))
            bar.update()

        def on_wait(running: list[Cell]) -> None:
            steps = [cell.name + (f" at step {at}" if (at := cell_step(cell)) else "") for cell in running]
            bar.set_postfix_str("; ".join(steps))

        outcomes = run_cells(cells, jobs=jobs, threads=threads, on_end=on_end, on_wait=on_wait)
    failed = [outcome for outcome in outcomes if outcome.code != 0]
    if failed:
        said = [f"{o.cell.name}: exit code {o.code}, {o.cell.directory / LOG}: {o.tail}" for o in failed[:3]]
        raise UserError(
            f"{len(failed)} of {len(cells)} runs failed; the others are kept. {'; '.join(said)}",
            remedy=f"mend the cause and call this again; the first one alone: {shlex.join(failed[0].cell.command)}",
        )


def _line(outcome: Outcome) -> str:
    """One line on a run that ended."""
    if outcome.code != 0:
        return f"{outcome.cell.name}: failed with exit code {outcome.code}"
    summary = numbers_only(cell_summary(outcome.cell) or {})
    shown = ("image_dsr", "over_refusal", "caption_accuracy", "vqa_accuracy", "train_s", "total_s")
    figures = [f"{key} {value_text(summary[key], key)}" for key in shown if key in summary]
    return f"{outcome.cell.name}: {', '.join(figures)}"


def _report(run_dir: Path, found: Mapping[tuple[str, int], Mapping[str, float]], values: Mapping[str, Any]) -> None:
    """table.md and report.html, and both tables in the terminal."""
    methods, baseline, columns = values["methods"], values["baseline"], values["columns"]
    tables = [means_table(found, methods, columns)]
    if baseline in methods and len(methods) > 1:
        tables.append(differences_table(found, methods, baseline, columns))
    said = notes(found, methods, baseline, columns)
    text = {key: numbers[key] for numbers in found.values() for key in SHARED_METRICS if key in numbers}
    said[:0] = [f"{key} {value:.3f}: the language model alone, whatever the projector." for key, value in text.items()]
    title = f"{', '.join(methods)} over seeds {', '.join(map(str, values['seeds']))}"
    write_text(run_dir / "table.md", markdown(title, tables, said))
    write_text(run_dir / "report.html", html_report(title, tables, said, footer=f"Runs: {run_dir / 'runs'}"))
    print_tables(tables, said)


if __name__ == "__main__":
    main()
