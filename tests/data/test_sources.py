"""One sample type behind WebDataset, Parquet and `save_to_disk`, read from files that their own libraries wrote.

`tests/data/sources` was written by webdataset 1.0.2 (TarWriter) and datasets 5.2.0 (`save_to_disk`, `to_parquet`), four
samples of seeded noise each; picture n is `tiny_picture(n, size=8)`.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import tiny_picture
from tga.data import table
from tga.data.loading import load_samples
from tga.data.picture import ArchivedPicture, TablePicture, identity, open_picture, read_bytes
from tga.data.sample import Sample, Turn
from tga.data.table import Tables
from tga.data.webdataset import WebDataset
from tga.errors import UserError

SOURCES = Path(__file__).parent / "sources"
COLUMNS = {"id": "id", "image": "image", "conversations": "conversations", "caption": None}


def read(source: Any, **options: Any) -> list[Sample]:
    return list(load_samples(source, **options).samples)


def pixels(sample: Sample) -> list[np.ndarray]:
    return [np.asarray(open_picture(image)) for image in sample.images]


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    tiny_picture(seed, size=8).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("files", ["hf.parquet", "hf_saved"])
def test_hugging_face_tables(files: str) -> None:
    samples = read(Tables((str(SOURCES / files),), COLUMNS))
    assert [sample.id for sample in samples] == ["r0", "r1", "r2", "r3"]
    assert [len(sample.images) for sample in samples] == [1, 1, 0, 1]
    assert samples[0].turns == (Turn("user", "What?"), Turn("assistant", "Answer 0."))
    assert samples[0].caption == "Answer 0." and samples[2].caption is None
    for number in (0, 1, 3):
        np.testing.assert_array_equal(pixels(samples[number])[0], np.asarray(tiny_picture(number, size=8)))


def test_webdataset_archives() -> None:
    samples = read(WebDataset((str(SOURCES / "webdataset-*.tar"),)))
    assert [sample.id for sample in samples] == ["w0", "w1", "01/00002", "01/00003"]
    assert samples[1].turns == (Turn("user", "What?"), Turn("assistant", "Answer 1."))
    assert (
        samples[2].turns == (Turn("user", ""), Turn("assistant", "Caption 2.")) and samples[2].caption == "Caption 2."
    )
    np.testing.assert_array_equal(pixels(samples[1])[0], np.asarray(tiny_picture(1, size=8)))
    assert pixels(samples[3])[0].shape == (8, 8, 3)
    assert [sample.id for sample in read(WebDataset((str(SOURCES / "webdataset-*.tar"),)), limit=3)][-1] == "01/00002"


def test_several_pictures_of_a_key_keep_their_markers(tmp_path: Path) -> None:
    record = {"conversations": [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Both."}]}
    members = {"a.1.png": png(1), "a.0.png": png(0), "a.json": json.dumps(record).encode(), "README": b"x"}
    (sample,) = read(WebDataset((str(write_tar(tmp_path / "a.tar", members)),)))
    assert sample.turns[0].text == "<image> or <image>?"
    for seed, found in enumerate(pixels(sample)):
        np.testing.assert_array_equal(found, np.asarray(tiny_picture(seed, size=8)))


def test_more_archives_than_are_indexed_at_once_stay_in_order(tmp_path: Path) -> None:
    for number in range(20):
        write_tar(tmp_path / f"{number:02d}.tar", {f"k{number:02d}.txt": b"A.", f"k{number:02d}.png": png(number)})
    samples = read(WebDataset((str(tmp_path / "*.tar"),)))
    assert [sample.id for sample in samples] == [f"k{number:02d}" for number in range(20)]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": b"x"}, "neither conversations nor a caption"),
        ({"a.png": b"x", "a.json": b"{"}, "json that cannot be read"),
        ({"a.png": b"x", "a.json": b"[1]"}, "json that is no object"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "txt that cannot be read"),
        ({"README": b""}, "no samples"),
    ],
)
def test_what_is_wrong_with_an_archive_is_said(members: dict[str, bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(WebDataset((str(write_tar(tmp_path / "a.tar", members)),)))


def test_archives_that_are_not_there_or_compressed_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file.*data\.shards"):
        read(WebDataset((str(tmp_path / "*.tar"),)))
    write_tar(tmp_path / "a.tar.gz", {"a.txt": b"A."}, "w:gz")
    with pytest.raises(UserError, match="uncompressed"):
        read(WebDataset((str(tmp_path / "a.tar.gz"),)))


def test_a_cut_archive_is_an_error_of_the_picture(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"A.", "a.png": png(0)})
    (sample,) = read(WebDataset((str(path),)))
    (picture,) = sample.images
    assert isinstance(picture, ArchivedPicture)
    path.write_bytes(path.read_bytes()[: picture.offset + 20])
    with pytest.raises(OSError, match="ends within a.png"):
        read_bytes(picture)


def test_parquet_with_bytes_paths_and_lists(tmp_path: Path) -> None:
    tiny_picture(5, size=8).save(tmp_path / "5.png")
    chat = [[{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]] * 2
    pq.write_table(pa.table({"image": [png(0), png(1)], "text": ["A.", "B."]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"image": ["5.png", None], "messages": chat}), tmp_path / "paths.parquet")
    several = [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "Two."}]
    cells = [[{"bytes": png(2), "path": None}, {"bytes": None, "path": "5.png"}], None]
    pq.write_table(pa.table({"image": cells, "chat": [several, chat[0]]}), tmp_path / "lists.parquet")
    parts = {"image": "image", "caption": "text"}
    plain = read(Tables((str(tmp_path / "bytes.parquet"),), parts))
    assert [sample.id for sample in plain] == ["0", "1"] and plain[1].caption == "B."
    np.testing.assert_array_equal(pixels(plain[1])[0], np.asarray(tiny_picture(1, size=8)))
    paths = read(Tables((str(tmp_path / "paths.parquet"),), {"image": "image", "conversations": "messages"}, tmp_path))
    assert paths[0].images == (tmp_path / "5.png",) and paths[1].images == () and paths[0].caption == "Yes."
    lists = read(Tables((str(tmp_path / "lists.parquet"),), {"image": "image", "conversations": "chat"}, tmp_path))
    assert len(lists[0].images) == 2 and lists[1].images == ()
    for seed, found in zip((2, 5), pixels(lists[0]), strict=True):
        np.testing.assert_array_equal(found, np.asarray(tiny_picture(seed, size=8)))


def test_bytes_in_some_rows_and_paths_in_others(tmp_path: Path) -> None:
    """The file's counts do not say which rows have bytes: then they are looked at."""
    tiny_picture(5, size=8).save(tmp_path / "5.png")
    cells = [{"bytes": png(2), "path": "x"}, {"bytes": None, "path": "5.png"}, None]
    pq.write_table(pa.table({"image": cells, "text": ["A.", "B.", "C."]}), tmp_path / "mixed.parquet")
    samples = read(Tables((str(tmp_path / "mixed.parquet"),), {"image": "image", "caption": "text"}, tmp_path))
    assert isinstance(samples[0].images[0], TablePicture) and samples[1].images == (tmp_path / "5.png",)
    assert samples[2].images == ()


def test_pictures_of_every_row_group_are_found(tmp_path: Path) -> None:
    table_ = pa.table({"image": [png(i) for i in range(7)], "text": [f"{i}." for i in range(7)]})
    pq.write_table(table_, tmp_path / "a.parquet", row_group_size=3)
    samples = read(Tables((str(tmp_path / "a.parquet"),), {"image": "image", "caption": "text"}))
    for number in (6, 0, 3, 2):  # any order
        np.testing.assert_array_equal(pixels(samples[number])[0], np.asarray(tiny_picture(number, size=8)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"files": ("none.parquet",)}, "no such file"),
        ({"columns": {"image": "picture"}}, r"picture \(for image\)"),
        ({"columns": {"sound": "image"}}, "sound"),
        ({"columns": {"image": "image"}}, "neither conversations nor a caption"),
        ({"columns": {"image": "path", "caption": "text"}}, "1 pictures are missing"),
        ({"columns": {"image": "path", "caption": "text"}, "image_root": Path()}, "outside"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0)], "path": ["../a.png"], "text": ["A."]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=said):
        read(Tables(**{"files": (str(tmp_path / "a.parquet"),), "columns": {}, **options}))


def test_large_row_groups_and_foreign_directories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [png(0)], "text": ["A."]}), tmp_path / "a.parquet")
    monkeypatch.setattr(table, "MAX_ROW_GROUP", 100)
    with pytest.raises(UserError, match="row_group_size of 100"):
        read(Tables((str(tmp_path / "a.parquet"),), {"image": "image", "caption": "text"}))
    with pytest.raises(UserError, match="save_to_disk"):
        read(Tables((str(tmp_path),), {"image": "image", "caption": "text"}))
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="no table"):
        read(Tables((str(tmp_path / "b.parquet"),), {"caption": "text"}))


def test_places_travel_to_workers_and_tell_data_sets_apart() -> None:
    samples = [
        *read(WebDataset((str(SOURCES / "webdataset-*.tar"),))),
        *read(Tables((str(SOURCES / "hf_saved"),), COLUMNS)),
    ]
    pictures = [picture for sample in samples for picture in sample.images]
    assert pickle.loads(pickle.dumps(pictures)) == pictures
    assert len({identity(picture) for picture in pictures}) == len(pictures) == 7
