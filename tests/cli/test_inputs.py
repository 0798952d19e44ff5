"""What a run reads: every file that its config leads to counts, by content, and nothing that it writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tga.cli import inputs
from tga.cli.inputs import inputs_identity

QUESTION = '{"id": "1", "prompt": "What?"}\n'


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path, n=2)
    for name in ("questions", "scenes/gun", "index", "prepared", "retriever"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "questions" / "q.jsonl").write_text(QUESTION)
    (tmp_path / "scenes" / "gun" / "a.png").write_bytes(b"12345")
    shutil.copytree(tmp_path / "questions", tmp_path / "more" / "questions")
    (tmp_path / "captions.txt").write_text("a car\n")
    (tmp_path / "retriever" / "open_clip_config.json").write_text("{}")
    (tmp_path / "prepared" / "manifest.json").write_text('{"fingerprint": "1"}')
    (tmp_path / "index" / "manifest.json").write_text("{}")
    (tmp_path / "steps.safetensors").write_bytes(b"0" * 100)
    return tmp_path


def config() -> dict[str, Any]:
    return {
        "name": "a name\nof two lines",
        "seed": 0,
        "run_dir": "index",
        "model": {"llm": "llm", "vision_tower": "vision_tower", "vlm": None},
        "data": {"json": "train.json", "image_root": "images", "captions": ["captions.txt"], "index_dir": "index",
                 "neighbours": "steps.safetensors"},
        "encoder": {"name": "local-dir:retriever"},
        "prepare": {"root": "prepared"},
        "evaluation": {"root": ".", "other_root": "more",
                       "metrics": {"vqa": {"file": "questions/q.jsonl"}, "dsr": {"file": "scenes"}}},
        "models": {"mine": "llm"},
        "extra": [{"vectors": "steps.safetensors", "hub": "org/name"}],
    }  # fmt: skip


READ = {
    "model.llm", "model.vision_tower", "data.json", "data.captions[0]", "encoder.name", "prepare.root",
    "evaluation.metrics.vqa", "evaluation.metrics.dsr", "evaluation.other_root.vqa", "extra[0].vectors",
}  # fmt: skip
VERSIONS = {"version_tga_vlm", "version_torch", "version_transformers"}


def test_what_is_read_and_nothing_else(world: Path) -> None:
    found = inputs_identity(config())
    assert set(found) == READ | VERSIONS
    assert found == inputs_identity(config()) and len({found[key] for key in READ}) == len(READ) - 1, (
        "the two question files are equal"
    )


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("llm/config.json", "model.llm"),
        ("llm/model.safetensors", "model.llm"),
        ("vision_tower/model.safetensors", "model.vision_tower"),
        ("train.json", "data.json"),
        ("captions.txt", "data.captions[0]"),
        ("retriever/open_clip_config.json", "encoder.name"),
        ("prepared/manifest.json", "prepare.root"),
        ("questions/q.jsonl", "evaluation.metrics.vqa"),
        ("more/questions/q.jsonl", "evaluation.other_root.vqa"),
        ("scenes/gun/b.png", "evaluation.metrics.dsr"),
        ("steps.safetensors", "extra[0].vectors"),
    ],
)
def test_a_changed_file_changes_its_digest_alone(world: Path, file: str, key: str) -> None:
    before = inputs_identity(config())
    with (world / file).open("ab") as opened:
        opened.write(b" ")
    after = inputs_identity(config())
    assert {name for name in before if before[name] != after[name]} == {key}


def test_the_same_content_written_again_is_the_same(world: Path) -> None:
    before = inputs_identity(config())
    shutil.copytree(world / "llm", world / "copy")
    shutil.rmtree(world / "llm")
    (world / "copy").rename(world / "llm")
    os.utime(world / "train.json", ns=(1, 1))
    assert inputs_identity(config()) == before


def test_a_large_file_goes_by_size_and_time(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "HASHED_BYTES", 50)
    before = inputs_identity(config())["extra[0].vectors"]
    os.utime(world / "steps.safetensors", ns=(7, 7))
    assert inputs_identity(config())["extra[0].vectors"] != before


def test_neighbours_count_where_nothing_is_there_to_make_them_of(world: Path) -> None:
    values = config()
    values["data"] |= {"captions": None, "index_dir": None}
    assert set(inputs_identity(values)) == (READ - {"data.captions[0]"}) | {"data.neighbours"} | VERSIONS


def test_another_version_is_another_identity(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "versions", lambda: {"version_torch": "9", "version_numpy": "1"})
    found = inputs_identity(config())
    assert found["version_torch"] == "9" and "version_numpy" not in found
