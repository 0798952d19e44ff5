"""tga-verify-data as a user calls it: a table, a bad list that tga-train takes, and an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny_llava_json
from tga.cli.verify_data import main
from tools import verify_data


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tga-verify-data", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_what_is_bad_is_shown_listed_and_too_much_of_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_llava_json(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["data.json=train.json", "data.image_root=images", "workers=0"]
    assert call(monkeypatch, *arguments) == 0
    assert "8 records, 0 bad" in capsys.readouterr().out and Path("bad.jsonl").read_text() == ""
    Path("images/0002.png").write_bytes(b"nothing")
    assert call(monkeypatch, *arguments, "data.max_bad_fraction=0.2", "out=lists/a.jsonl") == 0
    assert json.loads(Path("lists/a.jsonl").read_text())["row"] == 2
    assert call(monkeypatch, *arguments) == 1
    shown = capsys.readouterr()
    assert "unreadable_image" in shown.out and "1 of 8 records" in shown.err and "0.1250" in shown.err
    assert verify_data.main is main
