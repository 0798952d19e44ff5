"""tga-compare as a user calls it: what each run is told, the tables at the end, a second call, and mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.cli import compare
from tga.evaluation.cells import Cell, Outcome

PARTS = ["model.llm=a", "model.vision_tower=b", "data.json=c", "data.image_root=d"]
DSR = {"baseline": 0.1, "tga": 0.5, "tga_centred": 0.7}


def call(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    """Run tga-compare in this process, in `directory`; its exit code."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-compare", *arguments])
    try:
        compare.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """In place of subprocesses: summaries with known figures. The list holds what was run."""
    ran: list[Cell] = []

    def pretend(
        cells: Sequence[Cell],
        *,
        jobs: int,
        threads: int,
        on_end: Callable[[Outcome], None],
        on_wait: Callable[[list[Cell]], None],
    ) -> list[Outcome]:
        for cell in cells:
            cell.directory.mkdir(parents=True, exist_ok=True)
            figures = {"image_dsr": DSR[cell.method] + cell.seed / 100 * (cell.method != "tga"), "train_s": 60.0}
            summary = {**figures, "text_dsr": 0.98, "peak_rss_mib": 900.0, "config_hash": cell.config_hash}
            (cell.directory / "summary.json").write_text(json.dumps(summary))
            ran.append(cell)
            on_end(Outcome(cell, 0, ""))
        return [Outcome(cell, 0, "") for cell in cells]

    monkeypatch.setattr(compare, "run_cells", pretend)
    return ran


def test_each_run_is_told_its_method_seed_and_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell]
) -> None:
    settings = ["seeds=[3,4]", "methods=[baseline,tga]", "training.max_steps=7", "alignment.pair_weight=2"]
    assert call(monkeypatch, tmp_path, *PARTS, *settings, "run_dir=out", "jobs=1") == 0
    assert [(cell.method, cell.seed) for cell in runs] == [("baseline", 3), ("tga", 3), ("baseline", 4), ("tga", 4)]
    place = f"run_dir='{tmp_path / 'out' / 'runs' / 'tga-seed3'}'"
    general = ["export=null", *PARTS, "training.max_steps=7", "alignment=tga", "seed=3"]
    assert runs[1].command == (sys.executable, "-m", "tga.cli.train", *general, "alignment.pair_weight=2", place)
    assert "alignment.pair_weight=2" not in runs[0].command, "the baseline has no such setting"


def test_tables_and_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, tmp_path, *PARTS, "seeds=[0,1,2]", "run_dir=out")
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.out.splitlines()[-1] == f"Output directory: {tmp_path / 'out'}"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["baseline_image_dsr_mean"] == pytest.approx(0.11)
    assert summary["tga_centred_minus_baseline_image_dsr_mean"] == pytest.approx(0.6)
    assert summary["tga_minus_baseline_image_dsr_low"] == pytest.approx(0.39 - 4.302652729911275 * 0.01 / 3**0.5)
    assert summary["text_dsr"] == pytest.approx(0.98)
    assert summary["tga_train_s_mean"] == 60.0 and summary["tga_peak_rss_mib_mean"] == 900.0
    assert (summary["runs"], summary["runs_reused"], summary["seeds"]) == (9, 0, "0 1 2")
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| tga_centred | 0.710 [" in text and "| tga - baseline | +0.390 [" in text
    assert "tga - baseline" in (tmp_path / "out" / "report.html").read_text()
    assert "text_dsr 0.980: the language model alone" in captured.out


def test_a_second_call_runs_what_is_missing_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell]
) -> None:
    settings = [*PARTS, "methods=[baseline,tga]", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0]") == 0
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0,1]") == 0
    assert [(cell.method, cell.seed) for cell in runs[2:]] == [("baseline", 1), ("tga", 1)]
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0]", "alignment.pair_weight=3") == 0
    assert [(cell.method, cell.seed) for cell in runs[4:]] == [("tga", 0)]
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0]", "alignment.pair_weight=3", "fresh=true") == 0
    assert len(runs) == 7


def test_one_seed_says_that_there_are_no_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path, *PARTS, "seeds=[5]", "run_dir=out") == 0
    assert "One seed: there are no intervals" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tga_minus_baseline_image_dsr_mean"] == pytest.approx(0.35)
    assert not [key for key in summary if key.endswith(("_low", "_high"))]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["methods=[baseline,tgaa]"], ["no such method", "tgaa", "tga_centred", "methods=[...]"]),
        (["methods=[]"], ["at least one"]),
        (["seeds=[1,1]"], ["different", "[1, 1]"]),
        (["seeds=[one]"], ["whole numbers"]),
        (["jobs=0"], ["jobs=2"]),
        (["seed=3"], ["seed=3", "seeds=[0,1,2]"]),
        (["alignment=tga"], ["alignment=tga", "methods=[baseline,tga]"]),
        (["alignment.pair_wait=3"], ["pair_wait"]),
        (["training.max_stepz=3"], ["max_stepz"]),
        (["+experiment=maxi"], ["maxi", "mini"]),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: list[Cell],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, tmp_path, *PARTS, *arguments, "run_dir=out") == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ") and message.count("\n") == 1, message
    assert all(part in message for part in parts), message
    assert runs == [] and not (tmp_path / "out").exists()


def test_failed_runs_fail_the_command_and_name_their_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "false")  # the program that fails
    assert call(monkeypatch, tmp_path, *PARTS, "methods=[baseline]", "seeds=[0,1]", "run_dir=out") == 1
    captured = capsys.readouterr().err.strip()
    message = captured.splitlines()[-1]
    assert captured.count("Error") == 1 and message.startswith("Error: ")
    assert "2 of 2 runs failed" in message and str(tmp_path / "out" / "runs" / "baseline-seed0" / "run.log") in message
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
def test_two_real_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, tower = write_tiny_parts(tmp_path)
    data, images = write_tiny_llava_json(tmp_path)
    paths = [f"model.llm={llm}", f"model.vision_tower={tower}", f"data.json={data}", f"data.image_root={images}"]
    training = ["training.batch_size=4", "training.max_steps=2", "training.centre_captions=8"]
    settings = ["methods=[baseline,tga]", "seeds=[0]", "alignment.retrieved=none", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *paths, *training, *settings) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["runs"] == 2 and summary["tga_guide_gradient_norm_mean"] > 0
    assert summary["baseline_train_s_mean"] > 0 and summary["baseline_peak_rss_mib_mean"] > 100
