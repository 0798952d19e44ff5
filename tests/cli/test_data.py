"""The group `data`: every format trains, and what a bad list names is left out and counted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tests.tiny_clip import random_captions, write_tiny_clip
from tga.cli.train import main
from tga.training.callbacks import read_metrics

SOURCES = Path(__file__).resolve().parents[1] / "data" / "sources"
TINY = ["model.llm=llm", "model.vision_tower=vision_tower", "training.batch_size=2", "training.log_every=1",
        "training.accelerator=cpu", "run_dir=run", "alignment=baseline", "export=null"]  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path)
    shutil.copytree(SOURCES, tmp_path / "sources")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tga-train", *TINY, *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["data=webdataset", "data.shards=sources/webdataset-*.tar"],
        ["data=parquet", "data.files=sources/hf.parquet"],
        ["data=parquet", "data.files=[sources/hf_saved]"],
    ],
    ids=["webdataset", "parquet", "save_to_disk"],
)
def test_every_format_trains(arguments: list[str], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(monkeypatch, *arguments) == 0
    assert json.loads((world / "run" / "summary.json").read_text())["samples"] == 4
    assert [row["step"] for row in read_metrics(world / "run" / "metrics.jsonl")] == [1, 2]


def test_pictures_in_an_archive_are_joined_to_captions(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "captions.txt").write_text("\n".join(random_captions(30)))
    write_tiny_clip(world / "retriever")
    arguments = [
        "data=webdataset", "data.shards=sources/webdataset-*.tar", "alignment=tga", "data.captions=captions.txt",
        "data.index_dir=index", "encoder.name=local-dir:retriever", "data.neighbours_k=3", "data.limit=3",
    ]  # fmt: skip
    assert train(monkeypatch, *arguments) == 0
    rows = pq.read_table(world / "index" / "neighbours.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["w0", "w1", "01/00002", "01/00003"]  # all, whatever the limit
    assert all(len(row["texts"]) == 3 for row in rows)


def test_a_bad_list_is_counted_and_limited(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "images" / "0003.png").unlink()
    (world / "bad.jsonl").write_text('{"row": 3, "id": "0003", "problem": "missing_image", "detail": ""}\n')
    arguments = ["data.json=train.json", "data.image_root=images", "data.bad_list=bad.jsonl"]
    assert train(monkeypatch, *arguments) == 1
    assert "data.max_bad_fraction=SHARE" in capsys.readouterr().err and not (world / "run").exists()
    assert train(monkeypatch, *arguments, "data.max_bad_fraction=0.2") == 0
    assert "1 records (missing_image 1)" in capsys.readouterr().err
    found = json.loads((world / "run" / "summary.json").read_text())
    assert found["samples"] == 7


def test_an_unknown_format_is_refused(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(monkeypatch, "data.json=train.json", "data.image_root=images", "data.format=csv") == 1
    assert "llava_json, webdataset, parquet" in capsys.readouterr().err
