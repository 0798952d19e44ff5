"""The shipped comparisons: each is planned on the mini world, its settings fit, and what is shared is run once."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from tga.cli.common import plain
from tga.cli.comparison_plan import OWN, PlannedRun, check_comparison, plan_runs
from tga.cli.preflight import require_settings
from tga.cli.steering import check_settings
from tga.steering.choice import sweep_grid

CONF = Path(__file__).resolve().parents[2] / "conf" / "comparison"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
HEADER = ("# Needs: ", "# Run: tga-compare +experiment=mini +comparison={name} ", "# Override: ")
COMMAND = ["+experiment=mini", "seeds=[0]", "prepare.root=w"]


@pytest.fixture(autouse=True)
def configs() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        yield


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


@functools.cache
def planned(name: str, *more: str) -> list[PlannedRun]:
    overrides = [*COMMAND, f"+comparison={name}", *more]
    values = plain(compose("compare", overrides=overrides))
    check_comparison(values)
    return plan_runs(values, overrides, Path("out"))


def test_there_is_one_for_each_question() -> None:
    assert NAMES == ["cosine", "layers", "noise", "pooling", "remedies", "retrieved", "weights"]


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_says_what_it_is_for_and_sets_the_comparison_alone(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert all(f"\n{line.format(name=name)}" in text for line in HEADER)
    assert set(raw(name)) <= set(OWN), "other keys would not reach the runs"
    assert raw(name)["report_dir"] == f"${{run_dir}}/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_used_and_can_run(name: str) -> None:
    runs = planned(name)
    methods = raw(name)["methods"]
    assert [run.method for run in runs] == methods and methods[0] == "baseline"
    assert set(raw(name).get("variants", {})) | set(raw(name).get("steered", {})) <= set(methods)
    trained = [run for run in runs if run.of is None]
    for run in trained:
        require_settings(run.config)
    assert len({run.config_hash for run in trained}) == len(trained), "two names for one training"
    for run in (run for run in runs if run.of is not None):
        check_settings(run.config["steering"])
        assert run.config["evaluation"]["root"] == "w/evaluation/report"
        assert run.config["steering"]["choose_root"] == "w/evaluation/choose"
        assert sweep_grid(run.config["steering"]["alphas"]) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)


def test_comparisons_share_the_runs_that_they_have_in_common() -> None:
    runs = [(name, run) for name in NAMES for run in planned(name)]
    directories = {(run.method, run.directory) for _, run in runs}
    assert len(directories) == len({run.method for _, run in runs}), (
        "one for a method, whichever comparison asks for it"
    )
    assert {name for name, run in runs if run.method == "as_target"} == {"noise", "retrieved"}


def test_random_layers_are_those_that_the_file_says() -> None:
    rng = random.Random(0)
    pairs: list[list[int]] = []
    while len(pairs) < 3:
        pair = sorted(rng.sample(range(7), 2))
        pairs += [pair] if pair not in [[3, 4], *pairs] else []
    runs = {run.method: run.config["alignment"]["layers"] for run in planned("layers")[1:]}
    assert [runs[f"random_{number}"] for number in (1, 2, 3)] == pairs
    assert runs["located"] == [3, 4] and runs["input"] == [0] and runs["all_layers"] == "all"


def test_questions_for_choosing_are_asked_where_the_command_says() -> None:
    (command,) = [line for line in (CONF / "weights.yaml").read_text().splitlines() if line.startswith("# Run:")]
    override = "evaluation.root=${evaluation.choose_root}"
    assert f"'{override}'" in command
    (run,) = planned("weights", override, "methods=[weight_1_short]")
    assert run.config["evaluation"]["root"] == "w/evaluation/choose"


def test_poison_stands_beside_the_corpus_in_an_index_of_its_own() -> None:
    runs = {run.method: run.config["data"] for run in planned("noise")}
    assert runs["tga_poisoned"]["captions"] == ["w/captions.jsonl", "w/poison.jsonl"]
    assert runs["tga_poisoned"]["index_dir"] == "w/index_poisoned" != runs["tga_centred"]["index_dir"]
    assert runs["tga_noisy"]["swapped_words"] == runs["baseline_noisy"]["swapped_words"] == 0.1
    assert runs["tga_centred"]["swapped_words"] == 0
