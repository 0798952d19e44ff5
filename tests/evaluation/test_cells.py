"""Cells as subprocesses: what is done is not run again, a failure is told and does not stop the others."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tga.errors import UserError
from tga.evaluation.cells import Cell, Outcome, cell_step, cell_summary, run_cells

WRITE = """
import json, os, pathlib, sys
print("epoch 1\\repoch 2")
pathlib.Path(sys.argv[1], "summary.json").write_text(
    json.dumps({"config_hash": sys.argv[2], "threads": os.environ["OMP_NUM_THREADS"]}))
"""


def cell(tmp_path: Path, seed: int, code: str = WRITE, digest: str = "abc") -> Cell:
    directory = tmp_path / f"tga-{seed}"
    return Cell("tga", seed, directory, (sys.executable, "-c", code, str(directory), digest), digest)


def test_cells_run_and_are_known_as_done(tmp_path: Path) -> None:
    cells = [cell(tmp_path, seed) for seed in range(3)]
    assert [cell_summary(one) for one in cells] == [None, None, None]
    ended: list[Outcome] = []
    outcomes = run_cells(cells, jobs=2, threads=1, on_end=ended.append)
    assert [outcome.cell for outcome in outcomes] == cells and {outcome.code for outcome in outcomes} == {0}
    assert sorted(outcome.cell.seed for outcome in ended) == [0, 1, 2]
    assert cell_summary(cells[1]) == {"config_hash": "abc", "threads": "1"}
    assert (cells[0].directory / "run.log").read_text().startswith("epoch 1")
    assert outcomes[0].tail == "epoch 2"


def test_a_summary_of_another_config_does_not_count(tmp_path: Path) -> None:
    run_cells([cell(tmp_path, 0)], jobs=1, threads=1)
    assert cell_summary(cell(tmp_path, 0, digest="other")) is None


def test_what_an_older_run_left_is_gone(tmp_path: Path) -> None:
    one = cell(tmp_path, 0)
    run_cells([one], jobs=1, threads=1)
    (one.directory / "old.ckpt").touch()
    run_cells([one], jobs=1, threads=1)
    assert not (one.directory / "old.ckpt").exists() and cell_summary(one) is not None


def test_a_failure_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    failing = cell(tmp_path, 0, "import sys; print('Error: no pictures.'); sys.exit(3)")
    silent = cell(tmp_path, 1, "pass")
    good = cell(tmp_path, 2)
    outcomes = run_cells([failing, silent, good], jobs=3, threads=1)
    assert [outcome.code for outcome in outcomes] == [3, 1, 0]
    assert outcomes[0].tail == "Error: no pictures."
    assert "summary.json is missing" in outcomes[1].tail
    assert cell_summary(good) is not None


def test_a_directory_of_something_else_is_not_emptied(tmp_path: Path) -> None:
    one = cell(tmp_path, 0)
    one.directory.mkdir()
    (one.directory / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no comparison wrote.*tga-0"):
        run_cells([one], jobs=1, threads=1)
    assert (one.directory / "thesis.txt").read_text() == "mine"


def test_a_running_cell_tells_its_step(tmp_path: Path) -> None:
    one = cell(tmp_path, 0)
    assert cell_step(one) is None
    one.directory.mkdir()
    (one.directory / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20, "lm": 1.5}\n{"ste')
    assert cell_step(one) == 20


def test_those_who_wait_are_told_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tga.evaluation.cells.POLL_S", 0.05)
    slow = cell(tmp_path, 0, "import time; time.sleep(0.5)")
    seen: list[list[Cell]] = []
    run_cells([slow], jobs=1, threads=1, on_wait=seen.append)
    assert [slow] in seen and seen[-1] == []


def test_an_interrupt_ends_what_is_running(tmp_path: Path) -> None:
    slow = cell(tmp_path, 1, "import time; time.sleep(60)")

    def interrupt(_: Outcome) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_cells([cell(tmp_path, 0), slow, cell(tmp_path, 2)], jobs=2, threads=1, on_end=interrupt)
    assert time.monotonic() - started < 20
    assert json.loads((tmp_path / "tga-0" / "summary.json").read_text())["config_hash"] == "abc"
