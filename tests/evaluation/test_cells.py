"""Which cells are done: by the config that was wanted, what was read, and the versions of what computed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tga.evaluation.cells import Cell, cell_step, cell_summary, reason_to_run, write_record

READS = {"model.llm": "aaaa", "version_torch": "2.9"}


def done(directory: Path, *, digest: str = "abc", after: Cell | None = None) -> Cell:
    """A cell whose run has ended well."""
    cell = Cell("tga", 0, directory, ("true",), digest, READS, after)
    directory.mkdir(parents=True)
    write_record(cell)
    finish(cell)
    return cell


def finish(cell: Cell, **figures: float) -> None:
    (cell.directory / "summary.json").write_text(json.dumps({"config_hash": cell.config_hash, **figures}))


def test_a_cell_is_done_when_config_and_inputs_are_those_wanted(tmp_path: Path) -> None:
    cell = Cell("tga", 0, tmp_path / "a", ("true",), "abc", READS)
    assert cell_summary(cell) is None and reason_to_run(cell) == "it has not run yet"
    cell.directory.mkdir()
    write_record(cell)
    assert reason_to_run(cell) == "it was not finished"
    finish(cell, image_dsr=0.5)
    assert reason_to_run(cell) is None
    assert cell_summary(cell) == {"config_hash": "abc", "image_dsr": 0.5}
    assert cell_summary(dataclasses.replace(cell, config_hash="other")) is None


def test_what_has_changed_is_said(tmp_path: Path) -> None:
    cell = done(tmp_path / "a")
    now = {"model.llm": "bbbb", "version_torch": "2.10", "data.json": "cccc"}
    reason = reason_to_run(dataclasses.replace(cell, reads=now))
    assert reason == "data.json has changed; model.llm has changed; version_torch was 2.9 and is 2.10"
    assert reason_to_run(dataclasses.replace(cell, reads={"version_torch": "2.9"})) == "model.llm has changed"


def test_a_run_whose_inputs_were_not_recorded_runs_again(tmp_path: Path) -> None:
    cell = done(tmp_path / "a")
    (tmp_path / "a" / "cell.json").unlink()
    assert reason_to_run(cell) == "model.llm has changed; version_torch was none and is 2.9"


def test_a_cell_goes_by_the_result_of_the_one_before_it(tmp_path: Path) -> None:
    first = done(tmp_path / "first")
    second = dataclasses.replace(done(tmp_path / "second", digest="def", after=first), method="steered")
    assert reason_to_run(second) is None
    finish(first, train_s=3.0)
    assert reason_to_run(second) == "the run of tga, seed 0 has changed"
    (first.directory / "summary.json").unlink()
    assert reason_to_run(second) == "the run of tga, seed 0 has changed"


def test_a_running_cell_tells_its_step(tmp_path: Path) -> None:
    one = Cell("tga", 0, tmp_path / "a", ("true",), "abc")
    assert cell_step(one) is None
    one.directory.mkdir()
    (one.directory / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20, "lm": 1.5}\n{"ste')
    assert cell_step(one) == 20
