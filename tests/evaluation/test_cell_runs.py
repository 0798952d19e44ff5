"""Cells as subprocesses: a failure is told and stops no other, a dependent one waits, what is foreign is left alone."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tga.evaluation.cell_runs import NOT_STARTED, Outcome, run_cells
from tga.evaluation.cells import Cell, cell_summary, reason_to_run

WRITE = """
import json, os, pathlib, sys
print("epoch 1\\repoch 2")
pathlib.Path(sys.argv[1], "summary.json").write_text(
    json.dumps({"config_hash": sys.argv[2], "threads": os.environ["OMP_NUM_THREADS"]}))
"""
FAIL = "import sys; print('Error: no pictures.'); sys.exit(3)"


def cell(
    tmp_path: Path, seed: int, code: str = WRITE, *, digest: str = "abc", method: str = "tga", after: Cell | None = None
) -> Cell:
    directory = tmp_path / f"{method}-{seed}"
    command = (sys.executable, "-c", code, str(directory), digest)
    return Cell(method, seed, directory, command, digest, {"data.json": "1"}, after)


def test_cells_run_and_are_known_as_done(tmp_path: Path) -> None:
    cells = [cell(tmp_path, seed) for seed in range(3)]
    assert [cell_summary(one) for one in cells] == [None, None, None]
    ended: list[Outcome] = []
    outcomes = run_cells(cells, jobs=2, threads=1, on_end=ended.append)
    assert [outcome.cell for outcome in outcomes] == cells and {outcome.code for outcome in outcomes} == {0}
    assert sorted(outcome.cell.seed for outcome in ended) == [0, 1, 2]
    assert cell_summary(cells[1]) == {"config_hash": "abc", "threads": "1"}
    assert [reason_to_run(one) for one in cells] == [None, None, None]
    assert (cells[0].directory / "run.log").read_text().startswith("epoch 1")
    assert outcomes[0].tail == "epoch 2"


def test_what_an_older_run_left_is_gone(tmp_path: Path) -> None:
    one = cell(tmp_path, 0)
    run_cells([one], jobs=1, threads=1)
    (one.directory / "checkpoints").mkdir()
    (one.directory / "checkpoints" / "step-00000100.ckpt").touch()
    (one.directory / "answers.jsonl").touch()
    run_cells([one], jobs=1, threads=1)
    assert sorted(path.name for path in one.directory.iterdir()) == ["cell.json", "run.log", "summary.json"]


def test_files_of_others_beside_an_older_run_stay(tmp_path: Path) -> None:
    one = cell(tmp_path, 0)
    run_cells([one], jobs=1, threads=1)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "step-00000100.ckpt").write_text("elsewhere")
    (one.directory / "checkpoints").symlink_to(tmp_path / "pictures")
    (one.directory / "figures").mkdir()
    (one.directory / "figures" / "notes on figure 2.txt").write_text("mine")
    run_cells([one], jobs=1, threads=1)
    assert (one.directory / "figures" / "notes on figure 2.txt").read_text() == "mine"
    assert (tmp_path / "pictures" / "step-00000100.ckpt").read_text() == "elsewhere"


def test_a_record_of_something_else_is_no_mark(tmp_path: Path) -> None:
    one = cell(tmp_path, 0)
    one.directory.mkdir()
    (one.directory / "cell.json").write_text('{"cell": "HeLa", "plate": 7}')
    (one.directory / "answers.jsonl").write_text("mine")
    assert [outcome.code for outcome in run_cells([one], jobs=1, threads=1)] == [1]
    assert (one.directory / "answers.jsonl").read_text() == "mine"


def test_a_failure_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    failing = cell(tmp_path, 0, FAIL)
    silent = cell(tmp_path, 1, "pass")
    good = cell(tmp_path, 2)
    outcomes = run_cells([failing, silent, good], jobs=3, threads=1)
    assert [outcome.code for outcome in outcomes] == [3, 1, 0]
    assert outcomes[0].tail == "Error: no pictures."
    assert "summary.json is missing" in outcomes[1].tail
    assert cell_summary(good) is not None


def test_a_directory_of_something_else_fails_its_cell_alone(tmp_path: Path) -> None:
    foreign, good = cell(tmp_path, 0), cell(tmp_path, 1)
    foreign.directory.mkdir()
    (foreign.directory / "thesis.txt").write_text("mine")
    outcomes = run_cells([foreign, good], jobs=1, threads=1)
    assert [outcome.code for outcome in outcomes] == [1, 0]
    assert "no comparison wrote" in outcomes[0].tail and "tga-0" in outcomes[0].tail
    assert [path.name for path in foreign.directory.iterdir()] == ["thesis.txt"]


def test_a_command_that_is_not_there_fails_its_cell_alone(tmp_path: Path) -> None:
    lost = Cell("tga", 0, tmp_path / "lost", (str(tmp_path / "no-such-program"),), "abc")
    outcomes = run_cells([lost, cell(tmp_path, 1)], jobs=1, threads=1)
    assert [outcome.code for outcome in outcomes] == [1, 0] and "no-such-program" in outcomes[0].tail


def test_a_cell_waits_for_the_one_whose_result_it_reads(tmp_path: Path) -> None:
    slow = cell(tmp_path, 0, "import time; time.sleep(0.5)" + WRITE)
    reader = f"""
import pathlib
assert pathlib.Path({str(slow.directory / "summary.json")!r}).is_file()
"""
    second = cell(tmp_path, 0, reader + WRITE, method="steered", after=slow)
    outcomes = run_cells([second, slow], jobs=2, threads=1)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert reason_to_run(second) is None
    run_cells([slow], jobs=1, threads=1)
    (slow.directory / "summary.json").write_text('{"config_hash": "abc", "more": 1}')
    assert reason_to_run(second) == "the run of tga, seed 0 has changed"


def test_a_cell_does_not_run_where_the_one_before_it_failed(tmp_path: Path) -> None:
    failing = cell(tmp_path, 0, FAIL)
    second = cell(tmp_path, 0, method="steered", after=failing)
    third = cell(tmp_path, 0, method="steered_twice", after=second)
    other = cell(tmp_path, 1)
    outcomes = run_cells([failing, second, third, other], jobs=1, threads=1)
    assert [outcome.code for outcome in outcomes] == [3, NOT_STARTED, NOT_STARTED, 0]
    assert "tga, seed 0 failed" in outcomes[1].tail and "steered, seed 0 failed" in outcomes[2].tail
    assert not second.directory.exists()


def test_a_cell_whose_forerunner_is_done_runs_at_once(tmp_path: Path) -> None:
    first = cell(tmp_path, 0)
    run_cells([first], jobs=1, threads=1)
    second = cell(tmp_path, 0, method="steered", after=first)
    assert [outcome.code for outcome in run_cells([second], jobs=1, threads=1)] == [0]


def test_those_who_wait_are_told_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tga.evaluation.cell_runs.POLL_S", 0.05)
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


def test_a_run_imports_nothing_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('a file beside the data was run')")
    monkeypatch.chdir(tmp_path)
    outcome = run_cells([cell(tmp_path, 0, "import yaml\n" + WRITE)], jobs=1, threads=1)[0]
    assert outcome.code == 0, outcome.tail
