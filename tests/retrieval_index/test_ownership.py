"""Only what was written by us is removed or replaced: never what others put there, changed, or linked to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retrieval_index.build import build_index
from retrieval_index.errors import RetrievalError
from retrieval_index.files import file_sha256, remove_unfinished
from retrieval_index.grow import append_captions
from retrieval_index.manifest import read_manifest
from retrieval_index.ownership import (
    MARK,
    atomic_directory,
    listed,
    marked_files,
    reason_to_keep,
    remove_ours,
    replace_directory,
)
from retrieval_index.verify import verify_index
from tests.retrieval_index.cheap_encoder import CheapEncoder
from tests.retrieval_index.test_build import SMALL, file, job  # noqa: F401
from tests.tiny_clip import random_captions


def texts(directory: Path) -> dict[str, str]:
    """Files below a directory that hold text, by their path within it; links are not followed."""
    found = [Path(folder, name) for folder, _, names in os.walk(directory) for name in names]
    return {path.relative_to(directory).as_posix(): path.read_text() for path in found if not path.is_symlink()}


def write(root: Path, **files: str) -> dict[str, str]:
    """Write files (`__` for a slash); their hashes by path."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {name.replace("__", "/"): file_sha256(root / name.replace("__", "/")) for name in files}


def test_what_is_listed_and_unchanged_goes_and_nothing_else(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    files = write(root, a="1", b="2", only__c="3", both__d="4", link__e="5")
    write(outside, e="5", f="6")
    write(root, b="changed", both__mine="7")
    (root / "link" / "e").unlink()
    (root / "link").rmdir()
    (root / "link").symlink_to(outside)
    (root / "a2").symlink_to(root / "a")
    files["a2"] = files["a"]
    assert remove_ours(root, listed(root, files)) == ["a2", "b", "both/mine", "link"]
    assert texts(root) == {"b": "changed", "both/mine": "7"} and not (root / "only").exists()
    assert texts(outside) == {"e": "5", "f": "6"} and (root / "link").is_symlink() and (root / "a2").is_symlink()


def test_a_directory_of_which_nothing_stays_is_gone(tmp_path: Path) -> None:
    files = write(tmp_path / "root", a="1", b__c__d="2")
    assert remove_ours(tmp_path / "root", listed(tmp_path / "root", files)) == []
    assert list(tmp_path.iterdir()) == []
    assert remove_ours(tmp_path / "root", lambda _: True) == []


def test_paths_that_lead_out_of_the_directory_are_never_asked_for(tmp_path: Path) -> None:
    write(tmp_path, photo="mine")
    write(tmp_path / "root", a="1")
    files = {"../photo": file_sha256(tmp_path / "photo"), str(tmp_path / "photo"): file_sha256(tmp_path / "photo")}
    assert remove_ours(tmp_path / "root", listed(tmp_path / "root", files)) == ["a"]
    assert (tmp_path / "photo").read_text() == "mine"


@pytest.mark.parametrize("swaps", [True, False])
def test_files_of_others_move_over_to_the_new_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr("retrieval_index.ownership.exchange", lambda one, other: False)
    write(tmp_path / "old", a="old", b__c="old", b__notes="mine")
    write(tmp_path / "made", a="new")
    replace_directory(tmp_path / "made", tmp_path / "old", lambda _: lambda name: name in ("a", "b/c"))
    assert texts(tmp_path / "old") == {"a": "new", "b/notes": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_file_of_others_in_the_place_of_a_new_one_is_kept_and_named(tmp_path: Path) -> None:
    write(tmp_path / "old", a="mine")
    write(tmp_path / "made", a="new")
    with pytest.raises(RetrievalError, match="which stood at .*old/a") as raised:
        replace_directory(tmp_path / "made", tmp_path / "old", lambda _: lambda name: False)
    assert Path(str(raised.value.given).split(",")[0]).read_text() == "mine"
    assert (tmp_path / "old" / "a").read_text() == "new"


def test_a_marked_directory_is_replaced_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for text in ("one", "two"):
        assert reason_to_keep(target, "thing") is None
        with atomic_directory(target, "thing") as made:
            (made / "folder").mkdir()
            (made / "folder" / "file").write_text(text)
    assert (target / "folder" / "file").read_text() == "two" and set(marked_files(target, "thing") or ()) == {
        "folder/file"
    }
    assert "no mark" in str(reason_to_keep(target, "other thing"))
    (target / "folder" / "file").write_text("2wo")
    assert "were changed since: folder/file" in str(reason_to_keep(target, "thing"))
    (tmp_path / "photos").mkdir()
    assert reason_to_keep(tmp_path / "photos", "thing") is None
    for content in ("", "{}", '{"kind": "thing"}', '{"kind": "thing", "files": ["x"]}', "[]"):
        (tmp_path / "photos" / MARK).write_text(content)
        assert "no mark" in str(reason_to_keep(tmp_path / "photos", "thing"))


def test_only_whole_names_of_our_own_writer_are_unfinished_files(tmp_path: Path) -> None:
    names = [".a.txt.17.tmp", ".a.txt.17.abcd_123.tmp.txt", ".vim.tmp", ".17.tmp", ".notes.tmp", "a.17.tmp", ".a.x.tmp"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / ".link.17.tmp").symlink_to(tmp_path / ".vim.tmp")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[2:], ".link.17.tmp"])


@pytest.mark.parametrize("manifest", ['{"photos": []}', "no JSON", '{"format_version": 3}', "[1]"])
def test_photos_with_a_manifest_are_no_index(tmp_path: Path, file: Path, manifest: str) -> None:  # noqa: F811
    write(tmp_path / "photos", shards__1="a photo", index__2="another")
    (tmp_path / "photos" / "manifest.json").write_text(manifest)
    before = texts(tmp_path / "photos")
    with pytest.raises(RetrievalError, match="something else than an index"):
        build_index([file], tmp_path / "photos", job())
    assert texts(tmp_path / "photos") == before


def test_a_rebuild_keeps_what_others_put_into_the_index_or_beside_it(tmp_path: Path, file: Path) -> None:  # noqa: F811
    out = tmp_path / "index"
    build_index([file], out, job())
    write(out, notes="mine", shards__notes="mine too")
    write(tmp_path / "index.old", backup="a backup")
    build_index([file], out, job(settings=replace(SMALL, dtype="float16")))
    assert read_manifest(out).dtype == "float16" and verify_index(out) > 0
    assert (out / "notes").read_text() == "mine" and (out / "shards" / "notes").read_text() == "mine too"
    assert (tmp_path / "index.old" / "backup").read_text() == "a backup"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "index", "index.old"]


def photos(work: Path) -> None:
    write(work, a="a photo")


def another_index(work: Path) -> None:
    write(work, **{"manifest.json": "{}", "shards__00000.npy": "vectors"})


def with_a_mark_of_something_else(work: Path) -> None:
    write(work, **{"work.json": '{"hours": 7}', "shards__00000.npy": "vectors"})


@pytest.mark.parametrize("fill", [photos, another_index, with_a_mark_of_something_else])
@pytest.mark.parametrize("name", ["building", "growing"])
def test_a_work_directory_of_somebody_else_is_left_alone(
    tmp_path: Path,
    file: Path,  # noqa: F811
    fill: Callable[[Path], None],
    name: str,
) -> None:
    if name == "growing":
        build_index([file], tmp_path / "index", job())
    fill(tmp_path / f"index.{name}")
    before = texts(tmp_path / f"index.{name}")
    (tmp_path / "more.txt").write_text("\n".join(random_captions(40)[30:]), encoding="utf-8")
    with pytest.raises(RetrievalError, match="something that no build has left there.*move it away"):
        if name == "growing":
            append_captions([tmp_path / "more.txt"], tmp_path / "index", job())
        else:
            build_index([file], tmp_path / "index", job())
    assert texts(tmp_path / f"index.{name}") == before


def test_files_of_others_among_those_of_an_interrupted_build(tmp_path: Path, file: Path) -> None:  # noqa: F811
    with pytest.raises(KeyboardInterrupt):
        build_index([file], tmp_path / "index", job(CheapEncoder(stop_after=15)))
    write(tmp_path / "index.building", shards__notes="mine")
    with pytest.raises(RetrievalError, match="no build has left there. Given: .*shards/notes"):
        build_index([file], tmp_path / "index", job(settings=replace(SMALL, dtype="float16")))
    assert list((tmp_path / "index.building" / "shards").glob("*.npy")), "nothing is removed where something is refused"
    build_index([file], tmp_path / "index", job())
    assert (tmp_path / "index" / "shards" / "notes").read_text() == "mine"


def test_a_growth_keeps_what_others_put_into_the_index(tmp_path: Path, file: Path) -> None:  # noqa: F811
    out = tmp_path / "index"
    build_index([file], out, job())
    write(out, shards__notes="mine", index__notes="mine", duplicates__notes="mine")
    (tmp_path / "more.txt").write_text("\n".join(random_captions(40)[30:]), encoding="utf-8")
    append_captions([tmp_path / "more.txt"], out, job())
    assert read_manifest(out).rows > 23
    assert all((out / folder / "notes").read_text() == "mine" for folder in ("shards", "index", "duplicates"))
