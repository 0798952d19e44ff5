"""Files that are complete or absent, the full disk, and the claim on a directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from retrieval_index import ownership
from retrieval_index.errors import RetrievalError
from retrieval_index.files import atomic_path, exchange, file_sha256, hash_files, remove_unfinished, write_json
from retrieval_index.ownership import replace_directory


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="halfway"), atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise ValueError("halfway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_message_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RetrievalError, match="The disk is full. Given: .*file. To change it: free some space"):
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            Path("/dev/full").write_text("w")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_directory_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr("retrieval_index.ownership.exchange", lambda one, other: False)
    for content in ("first", "second", "third"):
        made = tmp_path / "made"
        made.mkdir()
        (made / "file").write_text(content)
        replace_directory(made, tmp_path / "place", lambda _: lambda name: name == "file")
        assert (tmp_path / "place/file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_place_is_never_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("made", "place", "probe", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchange(tmp_path / "probe", tmp_path / "other"):
        pytest.skip("this file system cannot swap two names")
    rename, remove = os.rename, ownership.remove_ours

    def removed(path: Path, ours: object) -> list[str]:
        assert (tmp_path / "place/file").read_text() == "made" and (path / "file").read_text() == "place"
        return remove(path, ours)

    def watched(old: Path, new: Path) -> None:
        assert (tmp_path / "place/file").read_text() == "made"  # the new one stands there before anything is renamed
        rename(old, new)

    monkeypatch.setattr("os.rename", watched)
    monkeypatch.setattr("retrieval_index.ownership.remove_ours", removed)
    replace_directory(tmp_path / "made", tmp_path / "place", lambda _: lambda name: True)
    assert (tmp_path / "place/file").read_text() == "made" and not (tmp_path / "made").exists()


def test_json_is_the_same_for_the_same_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "\u00e9"}, sort_keys=True)
    write_json(tmp_path / "b", {"a": "\u00e9", "b": 1}, sort_keys=True)
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
