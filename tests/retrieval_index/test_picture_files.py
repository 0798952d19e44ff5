"""What is opened as a picture: six formats by their bytes, regular files, and nothing that waits or runs."""

from __future__ import annotations

import ast
import os
import socket
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_index import picture_files
from retrieval_index.picture_files import FORMATS, open_regular, opened, read_rgb
from tests.tiny import tiny_picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", FORMATS)
def test_the_six_formats_are_read_whatever_the_name_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.xyz"
    tiny_picture().save(path, name.upper(), **({"lossless": True} if name == "WebP" else {}))
    for source in (path, str(path), BytesIO(path.read_bytes())):
        read = read_rgb(source)
        assert read.mode == "RGB" and read.size == (40, 40)
        if name not in ("JPEG", "GIF"):  # lossy
            np.testing.assert_array_equal(np.asarray(read), np.asarray(tiny_picture()))


@pytest.mark.parametrize("name", ["PPM", "ICO", "PCX", "SGI", "TGA", "JPEG2000", "EPS", "PDF"])
def test_others_are_refused_with_the_six(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    tiny_picture().save(path, name)
    for source in (path, BytesIO(path.read_bytes())):
        with pytest.raises(OSError, match="PNG, JPEG, WebP, BMP, GIF, TIFF"):
            read_rgb(source)


def test_a_picture_of_several_pictures_is_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "stereo.jpg"
    tiny_picture(0).save(path, "MPO", save_all=True, append_images=[tiny_picture(1)])
    assert read_rgb(path).size == (40, 40)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
        for name in ("fifo.png", "folder.png", "link.png", "socket.png"):
            with pytest.raises(OSError, match=name):
                read_rgb(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file.*fifo.png"):
        open_regular(tmp_path / "fifo.png")


def test_a_link_that_leads_nowhere_says_where(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(FileNotFoundError, match="a link to nowhere.png, which is not there.*link.png"):
        read_rgb(tmp_path / "link.png")
    tiny_picture().save(tmp_path / "there.png")
    (tmp_path / "good.png").symlink_to("there.png")
    assert read_rgb(tmp_path / "good.png").size == (40, 40)


def test_whatever_a_decoder_raises_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's decoders raise SyntaxError, struct.error, KeyError and others over damaged bytes."""
    tiny_picture().save(tmp_path / "a.png")

    def broken(*_: object, **__: object) -> None:
        raise SyntaxError("broken PNG file")

    with opened(tmp_path / "a.png") as picture:
        monkeypatch.setattr(picture, "convert", broken)
        with pytest.raises(OSError, match="damaged: broken PNG file"):
            picture_files.to_rgb(picture)


def test_pillows_bound_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        read_rgb(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        read_rgb(tmp_path / "a.png")


def test_no_other_file_of_the_product_opens_pictures() -> None:
    found = []
    for path in (file for folder in ("tga", "retrieval_index", "tools") for file in (ROOT / folder).rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        found += [path.name for call in calls if ast.unparse(call.func) in ("Image.open", "PIL.Image.open")]
    assert found == ["picture_files.py"]
