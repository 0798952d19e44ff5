"""Outputs are complete or absent, and nothing temporary stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tga.files import atomic_directory, atomic_path, write_json


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".txt" and not target.exists()
    assert target.read_text() == "one"
    assert target.stat().st_mode & 0o444 == (tmp_path / "new").stat().st_mode & 0o444
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "index"
    for content in ("one", "two"):
        with atomic_directory(target, "thing") as temporary:
            (temporary / content).write_text(content)
    assert sorted(p.name for p in target.iterdir()) == [".written_files.json", "two"]
    with pytest.raises(ZeroDivisionError), atomic_directory(target, "thing") as temporary:
        (temporary / "three").write_text("three")
        _ = 1 / 0
    assert sorted(p.name for p in target.iterdir()) == [".written_files.json", "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"name": "Bär", "total_s": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Bär", "total_s": 1.5}
    with pytest.raises(ValueError):
        write_json(path, {"total_s": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["total_s"] == 1.5
