"""tga-compare as a user calls it: what each run is told, the tables at the end, a second call, and mistakes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.cli import compare, inputs
from tga.cli.comparison_plan import _recipe
from tga.cli.locks import claimed
from tga.errors import UserError
from tga.evaluation.cell_runs import Outcome
from tga.evaluation.cells import Cell, write_record

PARTS = ["model.llm=a", "model.vision_tower=b", "data.json=c", "data.image_root=d"]
DSR = {"baseline": 0.1, "tga": 0.5, "tga_centred": 0.7, "tga_short": 0.8, "tga_low": 0.3, "low_short": 0.4}
STEERED = "+steered.tga_short={of: tga, overrides: ['evaluation.limit=3']}"
VARIANT = "+variants.tga_low={of: tga, overrides: ['alignment.layers=[0]', 'alignment.pair_weight=5']}"


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
        for cell in sorted(cells, key=lambda cell: cell.after is not None):
            cell.directory.mkdir(parents=True, exist_ok=True)
            write_record(cell)
            figures = {"image_dsr": DSR[cell.method] + cell.seed / 100 * (cell.method != "tga")}
            figures |= {"train_s": 60.0} if cell.after is None else {}
            figures |= {f"gap_layer_{layer}": layer + cell.seed for layer in range(4)}
            write_answers(cell)
            summary = {**figures, "text_dsr": 0.98, "peak_rss_mib": 900.0, "config_hash": cell.config_hash}
            (cell.directory / "summary.json").write_text(json.dumps(summary))
            ran.append(cell)
            on_end(Outcome(cell, 0, ""))
        return [Outcome(cell, 0, "") for cell in cells]

    monkeypatch.setattr(compare, "run_cells", pretend)
    return ran


def write_answers(cell: Cell) -> None:
    """Twenty judged answers on two scenes; a method refuses as many of them as its rate says."""
    refused = round(20 * DSR[cell.method])
    rows = [
        {"metric": "image_dsr", "id": str(i), "group": "gun" if i % 2 else "knife", "judged": i < refused}
        for i in range(20)
    ]
    (cell.directory / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))


def directory_of(cell: Cell) -> str:
    return cell.directory.name.rpartition("-")[0]


def test_each_run_is_told_its_method_seed_and_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell]
) -> None:
    settings = ["seeds=[3,4]", "methods=[baseline,tga]", "training.max_steps=7", "alignment.pair_weight=2"]
    assert call(monkeypatch, tmp_path, *PARTS, *settings, "run_dir=out", "jobs=1") == 0
    assert [(cell.method, cell.seed) for cell in runs] == [("baseline", 3), ("tga", 3), ("baseline", 4), ("tga", 4)]
    assert [directory_of(cell) for cell in runs] == ["baseline-seed3", "tga-seed3", "baseline-seed4", "tga-seed4"]
    assert runs[1].directory == tmp_path / "out" / "runs" / f"tga-seed3-{runs[1].config_hash[:8]}"
    place = f"run_dir='{runs[1].directory}'"
    general = ["export=null", *PARTS, "training.max_steps=7", "alignment=tga", "seed=3"]
    assert runs[1].command == (sys.executable, "-m", "tga.cli.train", *general, "alignment.pair_weight=2", place)
    assert "alignment.pair_weight=2" not in runs[0].command, "the baseline has no such setting"


def test_tables_and_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(monkeypatch, tmp_path, *PARTS, "seeds=[0,1,2]", "run_dir=out", "columns=[image_dsr,image_dzr]")
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
    assert "No run has a number for: image_dzr." in captured.out


def test_a_second_call_runs_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell]) -> None:
    settings = [*PARTS, "methods=[baseline,tga]", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0]") == 0
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0,1]") == 0
    assert [(cell.method, cell.seed) for cell in runs[2:]] == [("baseline", 1), ("tga", 1)]
    assert call(monkeypatch, tmp_path, *settings, "seeds=[0,1]", "fresh=true") == 0
    assert len(runs) == 8


def test_other_settings_leave_the_finished_runs_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*PARTS, "methods=[baseline,tga]", "seeds=[0]", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *settings) == 0
    assert call(monkeypatch, tmp_path, *settings, "alignment.pair_weight=3") == 0
    assert [(cell.method, cell.seed) for cell in runs[2:]] == [("tga", 0)]
    assert all((cell.directory / "summary.json").is_file() for cell in runs)
    (runs[2].directory / "summary.json").write_text(json.dumps({"image_dsr": 0.9, "config_hash": runs[2].config_hash}))
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, *settings, "alignment.pair_weight=3") == 0
    assert len(runs) == 3 and "| tga | 0.900 |" in (tmp_path / "out" / "table.md").read_text()
    assert call(monkeypatch, tmp_path, *settings) == 0
    assert len(runs) == 3 and "| tga | 0.500 |" in (tmp_path / "out" / "table.md").read_text()
    assert "2 of 2 runs are there already" in capsys.readouterr().out


def test_other_inputs_and_versions_run_again_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c").write_text("[]")
    settings = [*PARTS, "methods=[baseline]", "seeds=[0]", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *settings) == 0
    assert call(monkeypatch, tmp_path, *settings) == 0
    assert len(runs) == 1
    (tmp_path / "c").write_text("[ ]")
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, *settings) == 0
    assert len(runs) == 2 and "baseline, seed 0 runs again: data.json has changed\n" in capsys.readouterr().out
    monkeypatch.setattr(inputs, "versions", lambda: {"version_torch": "9.9"})
    assert call(monkeypatch, tmp_path, *settings) == 0
    assert len(runs) == 3 and " and is 9.9" in capsys.readouterr().out


def test_a_steered_method_is_the_trained_checkpoint_under_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["evaluation.root=q", "+evaluation.metrics.image_dsr={file: a.jsonl, by_group: true}"]
    settings = [*PARTS, *questions, STEERED, "methods=[tga_short,baseline,tga]", "seeds=[0,1]", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *settings, "training.accelerator=cpu", "model.dtype=bfloat16") == 0
    assert [(cell.method, cell.seed) for cell in runs[2:]] == [
        ("baseline", 1), ("tga", 1), ("tga_short", 0), ("tga_short", 1)
    ]  # fmt: skip
    steered, trained = runs[4], runs[1]
    assert steered.after == trained and steered.command[:3] == (sys.executable, "-m", "tga.cli.evaluate")
    arguments = set(steered.command[3:])
    assert arguments >= {
        f"models={{tga_short:'out/runs/{trained.directory.name}'}}", "dtype=bfloat16", "device=cpu",
        "attn_implementation=sdpa", "++evaluation.root='q'", "evaluation.limit=3", "++evaluation.limit=null",
        "++evaluation.metrics={image_dsr:{file:'a.jsonl',by_group:true}}",
    }  # fmt: skip
    assert steered.command.index("evaluation.limit=3") > steered.command.index("++evaluation.limit=null")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tga_short_minus_baseline_image_dsr_mean"] == pytest.approx(0.7)
    assert summary["tga_short_train_s_mean"] == 60.0, "what its training cost is what that of tga did"
    assert "tga_short: the checkpoints of tga, evaluated with evaluation.limit=3" in capsys.readouterr().out
    assert call(monkeypatch, tmp_path, *settings, "training.accelerator=cpu", "model.dtype=bfloat16") == 0
    assert len(runs) == 6
    (trained.directory / "summary.json").write_text(
        json.dumps({"image_dsr": 0.4, "config_hash": trained.config_hash, "train_s": 60.0})
    )
    assert call(monkeypatch, tmp_path, *settings, "training.accelerator=cpu", "model.dtype=bfloat16") == 0
    assert [(cell.method, cell.seed) for cell in runs[6:]] == [("tga_short", 0)]
    assert "tga_short, seed 0 runs again: the run of tga, seed 0 has changed" in capsys.readouterr().out
    (trained.directory / "summary.json").unlink()
    assert call(monkeypatch, tmp_path, *settings, "training.accelerator=cpu", "model.dtype=bfloat16") == 0
    assert [(cell.method, cell.seed) for cell in runs[7:]] == [("tga", 0), ("tga_short", 0)]


def test_a_variant_is_a_trained_method_under_overrides_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    shortened = "+steered.low_short={of: tga_low, overrides: ['evaluation.limit=3']}"
    settings = [*PARTS, VARIANT, shortened, "seeds=[0]", "run_dir=out", "alignment.pair_weight=2", "seeds=[3]"]
    assert call(monkeypatch, tmp_path, *settings, "methods=[low_short,baseline,tga,tga_low]") == 0
    assert [cell.method for cell in runs] == ["baseline", "tga", "tga_low", "low_short"]
    variant, steered = runs[2], runs[3]
    before = ["export=null", *PARTS, "alignment=tga", "seed=3", "alignment.pair_weight=2"]
    own = ["alignment.layers=[0]", "alignment.pair_weight=5"]
    assert variant.command[3:-1] == (*before, *own), "its own overrides come last, so they win"
    assert directory_of(variant) == "tga_low-seed3" and variant.config_hash != runs[1].config_hash
    assert steered.after == variant
    assert "tga_low: tga, trained with alignment.layers=[0] alignment.pair_weight=5." in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tga_low_minus_baseline_image_dsr_mean"] == pytest.approx(0.2)


def test_comparisons_of_one_directory_share_runs_and_keep_their_tables_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*PARTS, "seeds=[0]", "run_dir=out"]
    assert call(monkeypatch, tmp_path, *settings, "methods=[baseline,tga]") == 0
    table = (tmp_path / "out" / "table.md").read_text()
    other = [VARIANT, "methods=[baseline,tga_low]", "report_dir=out/low"]
    assert call(monkeypatch, tmp_path, *settings, *other) == 0
    assert [cell.method for cell in runs] == ["baseline", "tga", "tga_low"], "the baseline is there"
    assert (tmp_path / "out" / "table.md").read_text() == table and "tga_low" not in table
    assert capsys.readouterr().out.splitlines()[-1] == f"Output directory: {tmp_path / 'out' / 'low'}"
    written = {path.name for path in (tmp_path / "out" / "low").iterdir()}
    assert written == {"config.yaml", "summary.json", "table.md", "report.html"}
    assert "tga_low" in (tmp_path / "out" / "low" / "table.md").read_text()


def test_resampled_differences_scenes_and_means_over_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["evaluation.root=q", "+evaluation.metrics.image_dsr={file: a.jsonl, by_group: true}", "seeds=[0,1]"]
    settings += ["methods=[baseline,tga]", "columns=[image_dsr,gap]", "+layer_means.gap='gap_layer_{layer}'"]
    assert call(monkeypatch, tmp_path, *PARTS, *settings, "safety_layers=[0,3]", "run_dir=out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tga_gap_mean"] == pytest.approx(2.0), "layers 0 and 3, seeds 0 and 1"
    assert summary["tga_minus_baseline_image_dsr_bootstrap_low"] > 0.1
    assert summary["tga_minus_baseline_image_dsr_bootstrap_high"] < 0.7
    assert summary["tga_minus_baseline_image_dsr_bootstrap_p"] == pytest.approx(2 / 2001)
    assert "tga_minus_baseline_image_dsr_gun_bootstrap_p" in summary
    out = capsys.readouterr().out
    for text in ((tmp_path / "out" / "table.md").read_text(), (tmp_path / "out" / "report.html").read_text()):
        assert "resampled over seeds and questions" in text and "p 0.001" in text
        assert "image_dsr by group" not in text, "no run has rates by scene"
        assert "gap" in text
    assert "Not significant (the 95 % interval holds zero): tga - baseline in gap." in out
    assert call(monkeypatch, tmp_path, *PARTS, *settings, "safety_layers=all", "run_dir=out") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["tga_gap_mean"] == pytest.approx(2.5)


@pytest.mark.parametrize(("given", "jobs", "expected"), [(None, 2, 4), ("3", 2, 3), ("16", 2, 4), ("", 16, 1)])
def test_threads(given: str | None, jobs: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert compare.threads_of_each(jobs) == expected


def test_two_comparisons_in_one_directory_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    with claimed(tmp_path / "out"):
        assert call(monkeypatch, tmp_path, *PARTS, "seeds=[0]", "run_dir=out") == 1
    message = capsys.readouterr().err
    assert f"process {os.getpid()}" in message and "run_dir=ANOTHER_DIRECTORY" in message
    assert runs == [] and not (tmp_path / "out").exists()
    assert call(monkeypatch, tmp_path, *PARTS, "seeds=[0]", "run_dir=out") == 0


def test_one_seed_says_that_there_are_no_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path, *PARTS, "seeds=[5]", "run_dir=out") == 0
    assert "One seed: there are no intervals over seeds" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tga_minus_baseline_image_dsr_mean"] == pytest.approx(0.35)
    ends = [key for key in summary if key.endswith(("_low", "_high"))]
    assert ends and all("_bootstrap_" in key for key in ends), "questions can be drawn again, seeds cannot"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["methods=[baseline,tgaa]"], ["no such method", "tgaa", "tga_centred", "methods=[...]"]),
        (["methods=[]"], ["at least one"]),
        (["seeds=[1,1]"], ["different", "[1, 1]"]),
        (["seeds=[one]"], ["seeds is not", "a whole number from 0"]),
        (["jobs=0"], ["jobs is not", "a whole number from 1"]),
        (["seed=3"], ["seed=3", "seeds=[0,1,2]"]),
        (["alignment=tga"], ["alignment=tga", "methods=[baseline,tga]"]),
        (["alignment.pair_wait=3"], ["pair_wait"]),
        (["methods=[baseline,tga_short]", STEERED], ["tga_short stands on what", "Given: tga", "methods=[...]"]),
        (["methods=[tga,tga_short]", "+steered.tga_short={of: tga}"], ["not well described", "overrides"]),
        (["methods=[tga,tga_paper]", "+steered.tga_paper={of: tga, overrides: ['a=1']}"], ["name of another method"]),
        (["methods=[tga,tga_low]", "+variants.tga_low={of: tga, overrides: []}"], ["A variant is not well described"]),
        (["methods=[tga,regap]", "+variants.regap={of: tga, overrides: ['seed=1']}"], ["name of another method"]),
        (
            [
                "methods=[tga,x,y]",
                "+variants.x={of: y, overrides: ['name=x']}",
                "+variants.y={of: tga, overrides: ['name=y']}",
            ],
            ["variant x stands on", "Given: y", "another `of`"],
        ),
        (["methods=[x]", "+variants.x={of: tga, overrides: ['seed=1']}"], ["variant x sets", "seed", "variants.NAME"]),
        (["methods=[x]", "+variants.x={of: tga, overrides: ['trayning.epochs=1']}"], ["trayning"]),
        (["+comparison=laiers"], ["laiers", "layers"]),
        (["methods=[tga,x]", "+steered.x={of: tga, overrides: ['dtypo=float32']}"], ["dtypo"]),
        (["methods=[tga,x]", "+steered.x={of: tga, overrides: ['models={a: b}']}"], ["sets what the comparison sets"]),
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
    assert "2 of 2 runs failed" in message and str(tmp_path / "out" / "runs" / "baseline-seed0-") in message
    assert "/run.log" in message
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
def test_real_runs_and_a_real_evaluation_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm, tower = write_tiny_parts(tmp_path)
    data, images = write_tiny_llava_json(tmp_path)
    asked = [{"id": str(i), "image": f"images/{i:04d}.png", "prompt": f"What is {i}?", "group": "g"} for i in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)))
    paths = [f"model.llm={llm}", f"model.vision_tower={tower}", f"data.json={data}", f"data.image_root={images}"]
    training = ["training.batch_size=4", "training.max_steps=2", "training.centre_captions=8"]
    questions = ["evaluation.root=.", "+evaluation.metrics.image_dsr={file: q.jsonl, by_group: true}"]
    steered = "+steered.tga_short={of: tga, overrides: ['evaluation.limit=3', 'evaluation.max_new_tokens=5']}"
    settings = ["methods=[baseline,tga,tga_short]", "seeds=[0]", "alignment.retrieved=none", "run_dir=out", steered]
    assert call(monkeypatch, tmp_path, *paths, *training, *questions, *settings, "evaluation.max_new_tokens=5") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["runs"] == 3 and summary["tga_guide_gradient_norm_mean"] > 0
    assert summary["baseline_train_s_mean"] > 0 and summary["baseline_peak_rss_mib_mean"] > 100
    assert summary["tga_short_train_s_mean"] == summary["tga_train_s_mean"]
    assert "tga_short_minus_baseline_image_dsr_bootstrap_p" in summary
    answers = {}
    for directory in (tmp_path / "out" / "runs").iterdir():
        rows = [json.loads(line) for line in (directory / "answers.jsonl").read_text().splitlines()]
        answers[directory.name.rpartition("-seed0-")[0]] = {row["id"]: row["answer"] for row in rows}
    assert set(answers["tga_short"]) == {"0", "1", "2"} and set(answers["tga"]) == {"0", "1", "2", "3"}
    assert all(answers["tga"][key] == answer for key, answer in answers["tga_short"].items()), "the same checkpoint"
    assert "| g |" in (tmp_path / "out" / "table.md").read_text()
    capsys.readouterr()
    assert call(monkeypatch, tmp_path, *paths, *training, *questions, *settings, "evaluation.max_new_tokens=5") == 0
    assert "3 of 3 runs are there already" in capsys.readouterr().out


def test_a_variant_that_names_code_by_its_path_is_refused() -> None:
    variants = {"v": {"of": "tga", "overrides": ["alignment.objectives.tga.kind='evil:Code'"]}}
    with pytest.raises(UserError, match="The variant v names code by its import path.*evil:Code"):
        _recipe("v", variants)
