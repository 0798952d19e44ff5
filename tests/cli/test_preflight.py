"""Everything wrong with a run in one message, before a weight is read; what is right is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.cli import preflight_room
from tga.cli.preflight import preflight, require_ready
from tga.errors import UserError
from tga.training import stored_features


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts whose weights are empty files, and data: a preflight reads none of the weights."""
    root = tmp_path_factory.mktemp("world")
    for part in write_tiny_parts(root):
        (part / "model.safetensors").write_bytes(b"")
    write_tiny_llava_json(root)
    return root


def values(world: Path, *overrides: str, run_dir: str = "run") -> dict[str, Any]:
    """A config of tga-train on the tiny world, as plain values."""
    given = [
        f"model.llm={world}/llm", f"model.vision_tower={world}/vision_tower", f"data.json={world}/train.json",
        f"data.image_root={world}/images", "alignment.retrieved=none", f"run_dir={world}/{run_dir}",
        "training.accelerator=cpu", *overrides,
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        config = compose("train", overrides=given)
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def test_a_run_that_can_start_is_described(world: Path) -> None:
    found = preflight(values(world, "training.batch_size=2"))
    assert found.problems == [] and found.warnings == []
    assert found.samples is not None and len(found.samples) == 8
    facts = dict(found.facts)
    assert facts["samples"] == "8, 8 with a picture"
    assert facts["model"] == "llava, 3 decoder layers of width 32"
    assert facts["image tokens of a picture"] == "4"
    assert facts["parameters of the projector"] == f"{24 * 32 + 32 + 32 * 32 + 32:,} train, 0 frozen"
    assert "2 prompts of" in facts["memory of a step"]
    [disk] = [value for name, value in found.facts if name.startswith("disk of")]
    trained = 24 * 32 + 32 + 32 * 32 + 32
    assert f"checkpoints {3 * 12 * trained / 2**20:.1f} MiB" in disk and "export" in disk


def test_all_problems_come_at_once(world: Path) -> None:
    overrides = [
        "training.learning_rate=-1", "model.train=[nose]", "alignment.layers=[2,9]", "data.json=elsewhere.json",
        "ckpt_path=nothing.ckpt", "data.template=tokenizr", "model.dtype=float16", "training.loggers=[paper]",
        "training=deepspeed",
    ]  # fmt: skip
    with pytest.raises(UserError) as caught:
        require_ready(values(world, *overrides), print)
    message = str(caught.value)
    for part in ("learning_rate=-1", "nose", "[9]", "elsewhere.json", "nothing.ckpt", "tokenizr", "float16"):
        assert part in message
    assert "Unknown logger" in message and "DeepSpeed" in message
    assert message.startswith("9 problems were found before anything was loaded:\n  1. ")
    assert "tga-doctor" in message


def test_what_needs_the_model_is_checked_as_well(world: Path) -> None:
    found = preflight(values(world, "model.train=[nose]", "data.template=other", "alignment.layers=[2,9]"))
    assert [text for text in map(str, found.problems) if "nose" in text]
    assert [text for text in map(str, found.problems) if "other" in text]
    assert [text for text in map(str, found.problems) if "[9]" in text]
    assert len(found.problems) == 3


def test_one_problem_is_said_as_it_is(world: Path) -> None:
    with pytest.raises(UserError, match=r"^Layer numbers outside the language model\. Given: \[4\]"):
        require_ready(values(world, "alignment.layers=[4]"), print)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.llm=/no/such/directory", "there is no such directory"),
        ("data.max_length=3", "sample 0000"),
        ("alignment.reduction=max", "sum, mean"),
        ("model.projector=/no/such/projector", "There is no projector file"),
        ("training.precision=bf16", "32-true, bf16-mixed"),
        ("model.vision_feature_layer=7", "outside the vision tower"),
        ("model.vision_features=cached", "online, stored"),
        ("training.global_batch_size=7", "do not make the global batch"),
        ("training.batch_size=null", "The size of a batch is not said"),
        ("training.batch_size=0", "numbers from 1, or null"),
        ("training.processes=2", "training=ddp"),
    ],
)
def test_a_mistake_is_found(world: Path, override: str, said: str) -> None:
    assert [text for text in map(str, preflight(values(world, override)).problems) if said in text]


def test_stored_vision_features_want_a_frozen_tower_and_memory(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not preflight(values(world, "model.vision_features=stored")).problems
    trains = values(world, "model.vision_features=stored", "model.train=[projector,vision_tower]")
    assert [str(problem) for problem in preflight(trains).problems if "model.vision_features=online" in str(problem)]
    monkeypatch.setattr(stored_features, "MOST_OF_MEMORY", 1e-12)
    [problem] = preflight(values(world, "model.vision_features=stored")).problems
    assert "8 pictures" in str(problem)


def test_a_place_that_is_no_index_is_named_by_its_own_key(world: Path) -> None:
    place = [f"data.index_dir={world}/train.json", f"encoder.name=local-dir:{world}"]
    found = preflight(values(world, "alignment.retrieved=loss", f"data.captions={world}/train.json", *place))
    assert [str(problem) for problem in found.problems if "data.index_dir=DIR of a new" in str(problem)]


def test_missing_corpus_and_neighbours_are_named(world: Path) -> None:
    place = [f"data.index_dir={world}/index", f"encoder.name=local-dir:{world}"]
    found = preflight(values(world, "alignment.retrieved=loss", "data.captions=none.txt", *place))
    assert ["data.captions=none.txt" in str(problem) for problem in found.problems] == [True]
    found = preflight(values(world, "alignment.retrieved=loss", "data.neighbours=none.parquet"))
    assert ["data.neighbours=none.parquet" in str(problem) for problem in found.problems] == [True]


def test_a_device_that_is_too_small(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_room, "device", lambda accelerator: ("a tiny GPU", 2**16))
    [problem] = preflight(values(world)).problems
    assert "do not fit on the device" in str(problem) and "a tiny GPU has 0.1 MiB" in str(problem)
    monkeypatch.setattr(preflight_room, "device", lambda accelerator: ("a small GPU", 2**20))
    said: list[str] = []
    assert len(require_ready(values(world), said.append)) == 8
    [warning] = said
    assert warning.startswith("Warning: A step may not fit on the device") and "training.batch_size" in warning


def test_a_disk_that_is_too_full(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Usage", (), {"free": 1000, "total": 1000, "used": 0})
    monkeypatch.setattr(preflight_room.shutil, "disk_usage", lambda path: full)
    stored = ["alignment.targets=stored", f"data.targets_dir={world}/targets"]
    [problem] = preflight(values(world, *stored)).problems
    assert "no room for what the run writes" in str(problem) and "text targets at most" in str(problem)
    assert not (world / "targets").exists()
