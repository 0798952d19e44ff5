"""Files that are complete or absent, the full disk, and the claim on a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.files import (
    _swap,
    claimed,
    file_sha256,
    hash_files,
    move_into_place,
    remove_unfinished,
    replacing,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="halfway"), replacing(path) as temporary:
        temporary.write_text("ne")
        raise ValueError("halfway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_message_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(RetrievalError, match="The disk is full. Given: .*file. To change it: free some space"):
        with replacing(path) as temporary:
            temporary.write_text("new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_directory_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr("retrieval_index.files._swap", lambda one, other: False)
    for content in ("first", "second", "third"):
        made = tmp_path / "made"
        made.mkdir()
        (made / "file").write_text(content)
        move_into_place(made, tmp_path / "place")
        assert (tmp_path / "place/file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_place_is_never_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("made", "place", "probe", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not _swap(tmp_path / "probe", tmp_path / "other"):
        pytest.skip("this file system cannot swap two names")
    rename = os.rename

    def watched(old: Path, new: Path) -> None:
        assert (tmp_path / "place/file").read_text() == "made"  # the new one stands there before anything is renamed
        rename(old, new)

    monkeypatch.setattr("os.rename", watched)
    move_into_place(tmp_path / "made", tmp_path / "place")
    assert (tmp_path / "place/file").read_text() == "made" and not (tmp_path / "made").exists()


def test_json_is_the_same_for_the_same_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "\u00e9"})
    write_json(tmp_path / "b", {"a": "\u00e9", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"a": "\u00e9", "b": 1}


def test_hashes(tmp_path: Path) -> None:
    for name, text in {"a": "12", "b": "3", "c": "1", "d": "23", "e": "12"}.items():
        (tmp_path / name).write_text(text)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    assert hash_files([a, b]) == hash_files([e, b])
    assert len({hash_files([a, b]), hash_files([c, d]), hash_files([b, a])}) == 3
    assert file_sha256(a) == "6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918"


def test_unfinished_files_are_removed_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("shards/.00000.npy.17.tmp", "shards/00000.npy", ".other"):
        (tmp_path / name).write_text("x")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".other", "00000.npy"]


def test_another_process_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from retrieval_index.files import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "work")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(RetrievalError, match="Another process is building this index"):
            with claimed(tmp_path / "work"):
                pytest.fail("claimed twice")
    finally:
        holder.kill()
        holder.wait()
    with claimed(tmp_path / "work"):
        assert (tmp_path / ".work.lock").exists()
    assert list(tmp_path.iterdir()) == []
