"""The bad list: every kind of flaw by its name, the same from any number of processes, taken up after a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny import tiny_picture, write_tiny_llava_json
from tga.data import verify as module
from tga.data.llava_json import LlavaJson
from tga.data.loading import load_samples
from tga.data.record import Problem
from tga.data.verify import Entry, verify
from tga.data.webdataset import WebDataset
from tga.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "missing": "missing_image", "cut": "truncated_image", "bomb": "oversized_image", "text": "unreadable_image",
    "outside": "outside_image_root", "silent": "empty_caption", "turns": "malformed", "good#": "duplicate_id",
}  # fmt: skip


def bomb(width: int, height: int) -> bytes:
    """A PNG that is nearly nothing on disk and `width` x `height` pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def write(root: Path) -> LlavaJson:
    """A record of every kind, two good ones among them."""
    tiny_picture(0).save(root / "good.png")
    buffer = io.BytesIO()
    tiny_picture(1, size=64).save(buffer, "JPEG")
    (root / "cut.jpg").write_bytes(buffer.getvalue()[:900])
    (root / "bomb.png").write_bytes(bomb(20_000, 20_000))
    (root / "text.jpg").write_text("<html>not found</html>")
    chat = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    silent = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " "}]
    records: list[dict[str, Any]] = [
        {"id": "good", "image": "good.png", "conversations": chat},
        {"id": "missing", "image": "none.png", "conversations": chat},
        {"id": "cut", "image": "cut.jpg", "conversations": chat},
        {"id": "bomb", "image": "bomb.png", "conversations": chat},
        {"id": "text", "image": "text.jpg", "conversations": chat},
        {"id": "outside", "image": "../good.png", "conversations": chat},
        {"id": "silent", "image": "good.png", "conversations": silent},
        {"id": "turns", "image": "good.png", "conversations": chat[:1]},
        {"id": "good", "image": "good.png", "conversations": chat},
        {"id": "plain", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello."}]},
    ]
    (root / "data.json").write_text(json.dumps(records))
    return LlavaJson(root / "data.json", root)


def test_every_flaw_has_its_name_and_the_loader_leaves_it_out(tmp_path: Path) -> None:
    source, out = write(tmp_path), tmp_path / "lists" / "bad.jsonl"
    seen: list[int] = []
    found = verify(source, out, progress=seen.append)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Entry(**row) for row in rows] == found.bad
    assert {row["id"] if row["row"] != 8 else "good#": row["problem"] for row in rows} == KINDS
    assert found.records == 10 and seen[-1] == 10 and found.bad_fraction == 0.8
    assert found.counts()["truncated_image"] == 1 and sum(found.counts().values()) == 8
    loaded = load_samples(source, bad_list=out, max_bad_fraction=0.8)
    assert [sample.id for sample in loaded.samples] == ["good", "plain"] and loaded.skipped == found.counts()
    numbered = verify(source, out, duplicate_ids="number")
    assert "duplicate_id" not in numbered.counts()
    left = load_samples(source, bad_list=out, max_bad_fraction=1, duplicate_ids="number").samples
    assert [sample.id for sample in left] == ["good", "good#2", "plain"]
    assert list(out.parent.iterdir()) == [out]


def test_the_bound_on_pixels_is_ours(tmp_path: Path) -> None:
    source = write(tmp_path)
    found = verify(source, tmp_path / "bad.jsonl", max_pixels=40 * 40 - 1)
    assert [entry.id for entry in found.bad if entry.problem == "oversized_image"] == ["good", "cut", "bomb"]
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    assert module.problem_of_picture(tmp_path / "a.png", 81) is None
    assert isinstance(module.problem_of_picture(tmp_path / "a.png", 80), Problem)


def test_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path)
    here = verify(source, tmp_path / "bad.jsonl")
    monkeypatch.setattr(module, "CHUNK", 2)
    assert verify(source, tmp_path / "bad.jsonl", workers=2) == here


def test_a_picture_in_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes((Path(__file__).parent / "sources" / "webdataset-000000.tar").read_bytes())
    source = WebDataset((str(path),))
    assert verify(source, tmp_path / "bad.jsonl").bad == []
    data = bytearray(path.read_bytes())
    data[7680 : 7680 + 8] = b"\0" * 8  # the second picture's signature
    path.write_bytes(bytes(data))
    (entry,) = verify(source, tmp_path / "bad.jsonl").bad
    assert (entry.row, entry.id, entry.problem) == (
        1,
        "w1",
        "unreadable_image",
    ) and "a.tar:00/00001.png" in entry.detail


def killed(data: Path, root: Path, out: Path, after: int) -> None:
    """Run as a process of its own: a verification that kills itself when so many records were looked at."""
    module.CHUNK = 2

    def progress(records: int) -> None:
        if records >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    verify(LlavaJson(data, root), out, progress=progress)


def test_a_killed_verification_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path), tmp_path / "bad.jsonl"
    expected = verify(source, tmp_path / "whole.jsonl")
    code = "import sys; from pathlib import Path; from tests.data.test_verify import killed; "
    code += f"killed(Path({str(source.path)!r}), Path({str(tmp_path)!r}), Path({str(out)!r}), 6)"
    dead = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()
    progress = out.with_name("bad.jsonl.progress")
    assert not out.exists() and len(progress.read_text().splitlines()) == 3
    with progress.open("a") as file:
        file.write('{"mark": "ha')  # what a kill in mid-write leaves
    monkeypatch.setattr(module, "CHUNK", 2)
    looked: list[int] = []
    look = module._look
    monkeypatch.setattr(
        module, "_look", lambda chunk, bound: looked.extend(r.row for r, _ in chunk) or look(chunk, bound)
    )
    assert verify(source, out) == expected
    assert looked == [6, 7, 8, 9] and not progress.exists()
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_file_that_is_no_bad_list_is_not_replaced(tmp_path: Path) -> None:
    write_tiny_llava_json(tmp_path)
    data, notes, folder = tmp_path / "train.json", tmp_path / "notes.txt", tmp_path / "folder"
    notes.write_text("mine\n")
    folder.mkdir()
    source = LlavaJson(data, tmp_path / "images")
    for place in (data, notes, folder):
        before = place.read_bytes() if place.is_file() else None
        with pytest.raises(UserError, match="would replace something that is no bad list"):
            verify(source, place)
        assert before is None or place.read_bytes() == before
    problems = tmp_path / "problems.jsonl"  # of mathematics, say
    problems.write_text('{"problem": "1 + 1", "solution": "2"}\n')
    with pytest.raises(UserError, match="would replace something that is no bad list"):
        verify(source, problems)
    assert problems.read_text() == '{"problem": "1 + 1", "solution": "2"}\n'
    (tmp_path / "link.jsonl").symlink_to(problems)
    with pytest.raises(UserError, match="would replace something that is no bad list"):
        verify(source, tmp_path / "link.jsonl")
    out = tmp_path / "bad.jsonl"
    progress = tmp_path / "bad.jsonl.progress"
    progress.write_text("my own progress\n")
    with pytest.raises(UserError, match="would replace something that is no progress file"):
        verify(source, out)
    assert progress.read_text() == "my own progress\n" and not out.exists()
    progress.unlink()
    for content in ("", '{"row": 1, "id": "a", "problem": "missing_image", "detail": ""}\n'):
        out.write_text(content)
        assert verify(source, out).bad == [] and out.read_text() == ""
    with pytest.raises(UserError, match="no data file"):
        verify(LlavaJson(tmp_path / "nope.json", tmp_path), tmp_path / "new" / "bad.jsonl")
    assert not (tmp_path / "new").exists()
