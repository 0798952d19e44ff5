"""Every way by which a picture gets into the product refuses what is no picture: PostScript under the name of a JPEG,
whose opening starts Ghostscript, a FIFO, and a link that leads nowhere."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from retrieval_index.batching import open_picture as open_query
from retrieval_index.errors import RetrievalError
from tests.tiny import tiny_picture
from tests.tiny_clip import write_tiny_clip
from tga.cli import build_index, verify_data
from tga.data.picture import ArchivedPicture, TablePicture, load_picture, open_picture, read_bytes
from tga.data.verify import MAX_PIXELS, problem_of_picture
from tga.errors import UserError
from tga.evaluation import prompts
from tga.evaluation.questions import read_questions, read_toxic_scenes
from tga.steering.pictures import mean_picture

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
FORMATS = "PNG, JPEG, WebP, BMP, GIF, TIFF"
CHAT = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]


def archived(path: Path) -> ArchivedPicture:
    archive = path.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(path, "picture.jpg")
    with tarfile.open(archive) as tar:
        member = tar.getmember("picture.jpg")
    return ArchivedPicture(str(archive), "picture.jpg", member.offset_data, member.size)


def in_a_table(path: Path) -> TablePicture:
    pq.write_table(pa.table({"image": [path.read_bytes()]}), path.with_suffix(".parquet"))
    return TablePicture(str(path.with_suffix(".parquet")), "image", 0)


def verified(path: Path) -> str:
    problem = problem_of_picture(path, MAX_PIXELS)
    if problem is not None:
        raise UserError(f"{problem.kind} {problem.detail}")
    return "no problem"


def questions(path: Path) -> list[Path | None]:
    rows = path.with_name("questions.jsonl")
    rows.write_text(json.dumps({"id": 1, "prompt": "What?", "image": path.name}))
    return [question.image for question in read_questions(rows)]


def scenes(path: Path) -> list[Path | None]:
    (path.parent / "scenes" / "gun").mkdir(parents=True)
    path.rename(path.parent / "scenes" / "gun" / path.name)
    return [question.image for question in read_toxic_scenes(path.parent / "scenes", "What?")]


# Of files, and of anything that may stand in their place.
OF_FILES: dict[str, Callable[[Path], object]] = {
    "a training picture": lambda path: load_picture(path, "sample"),
    "verification": verified,
    "a picture of the index": open_query,
    "a picture of the index by a function": lambda path: open_query(functools.partial(open_picture, path)),
    "questions": questions,
    "toxic scenes": scenes,
    "a question's picture": prompts._open,
    "its size": prompts._size,
    "the mean picture": lambda path: mean_picture([path], 8),
}
OF_BYTES: dict[str, Callable[[Path], object]] = {
    "a member of an archive": lambda path: load_picture(archived(path), "sample"),
    "a cell of a table": lambda path: load_picture(in_a_table(path), "sample"),
    "bytes for the index": lambda path: open_query(BytesIO(path.read_bytes())),
}


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gs` that comes first on the PATH; what it leaves behind when it is started."""
    (tmp_path / "bin").mkdir()
    program, trace = tmp_path / "bin" / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {trace}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


@pytest.fixture
def postscript(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    return tmp_path / "a.jpg"


@pytest.fixture
def soon() -> Iterator[None]:
    """What waits for a FIFO is interrupted."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_pillow_alone_would_start_it(postscript: Path, ghostscript: Path) -> None:
    with Image.open(postscript) as picture, pytest.raises(OSError, match=r"gs|truncated|write|cannot"):
        picture.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("door", [*OF_FILES, *OF_BYTES])
def test_postscript_starts_nothing(door: str, postscript: Path, ghostscript: Path) -> None:
    with pytest.raises((UserError, RetrievalError), match=FORMATS):
        (OF_FILES | OF_BYTES)[door](postscript)
    assert not ghostscript.exists()


@pytest.mark.parametrize("door", [*OF_FILES, *OF_BYTES])
def test_a_picture_passes(door: str, tmp_path: Path) -> None:
    tiny_picture().save(tmp_path / "a.jpg")
    found = (OF_FILES | OF_BYTES)[door](tmp_path / "a.jpg")
    if isinstance(found, Image.Image):
        assert (found.mode, found.size) == ("RGB", (8, 8) if door == "the mean picture" else (40, 40))
    elif isinstance(found, list):
        assert [path.name for path in found] == ["a.jpg"]
    else:
        assert found in ("no problem", (40, 40))


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("door", OF_FILES)
def test_nobody_waits_for_a_fifo(door: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises((UserError, RetrievalError), match="not a regular file"):
        OF_FILES[door](tmp_path / "a.jpg")


@pytest.mark.usefixtures("soon")
def test_nobody_waits_for_a_fifos_bytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(tmp_path / "a.jpg")


@pytest.mark.parametrize("door", OF_FILES)
def test_a_link_that_leads_nowhere_is_a_missing_picture(door: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("nowhere")
    with pytest.raises((UserError, RetrievalError), match=r"nowhere|do not exist"):
        OF_FILES[door](tmp_path / "a.jpg")


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Callable[[], None], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    monkeypatch.setenv("COLUMNS", "300")
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.usefixtures("soon")
def test_the_commands_refuse_them_all(
    tmp_path: Path,
    ghostscript: Path,
    postscript: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.jpg")
    Path("link.jpg").symlink_to("nowhere")
    tiny_picture().save("good.jpg")
    Path("captions.txt").write_text("a red dog\na blue car\n")
    names = ["a.jpg", "fifo.jpg", "link.jpg", "good.jpg"]
    Path("data.json").write_text(json.dumps([{"id": name, "image": name, "conversations": CHAT} for name in names]))
    code, out, err = call(
        monkeypatch, capsys, verify_data.main, "data.json=data.json", f"data.image_root={tmp_path}", "workers=0",
        "data.max_bad_fraction=1", "out=bad.jsonl",
    )  # fmt: skip
    assert code == 0 and "4 records, 3 bad" in out and err.count("Traceback") == 0
    found = {row["id"]: row for row in map(json.loads, Path("bad.jsonl").read_text().splitlines())}
    assert FORMATS in found["a.jpg"]["detail"] and found["a.jpg"]["problem"] == "unreadable_image"
    assert "not a regular file" in found["fifo.jpg"]["detail"] and "nowhere" in found["link.jpg"]["detail"]

    encoder = f"encoder.name={write_tiny_clip(tmp_path / 'clip')}"
    index = [encoder, "encoder.device=cpu", "out=index", "k=1"]
    assert call(monkeypatch, capsys, build_index.main, *index, "captions=captions.txt", "query=good.jpg")[0] == 0
    for name, said in [("a.jpg", FORMATS), ("fifo.jpg", "not a regular file"), ("link.jpg", "does not exist")]:
        code, out, err = call(monkeypatch, capsys, build_index.main, *index, f"query={name}")
        assert code == 1 and said in err and len(err.splitlines()) == 1, err
        Path("one.json").write_text(json.dumps([{"id": name, "image": name, "conversations": CHAT}]))
        code, out, err = call(
            monkeypatch, capsys, build_index.main, *index, "neighbours=one.json", f"image_root={tmp_path}"
        )
        assert code == 1 and said in err and "Traceback" not in err, err
    assert not ghostscript.exists()
