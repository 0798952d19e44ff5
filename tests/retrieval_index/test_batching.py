"""Batches by length in the order given, one block ahead, and pictures from wherever they lie."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_index import batching
from retrieval_index.batching import ahead, encode_blocks, encode_pictures, open_picture
from retrieval_index.errors import RetrievalError
from tests.tiny_clip import write_pictures


def test_results_come_in_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BLOCK", 5)
    texts = [word * length for word, length in zip("abcdefghijk", [3, 1, 2, 5, 4, 1, 1, 9, 2, 3, 7], strict=True)]
    batches: list[list[int]] = []

    def encode(block: list[str], rows: np.ndarray) -> np.ndarray:
        batches.append([len(block[row]) for row in rows])
        return np.array([[len(block[row]), ord(block[row][0])] for row in rows], dtype=np.float32)

    done: list[int] = []
    lengths = lambda block: np.array([len(text) for text in block])  # noqa: E731
    found = encode_blocks(texts, 2, 2, list, lengths, encode, done.append)
    assert found.tolist() == [[len(text), ord(text[0])] for text in texts]
    assert batches == [[1, 2], [3, 4], [5], [1, 1], [2, 3], [9], [7]]
    assert done == [2, 4, 5, 7, 9, 10, 11]


def test_the_next_item_is_prepared_while_the_last_is_used() -> None:
    prepared: list[int] = []
    items = ahead(lambda item: prepared.append(item) or item * 10, [1, 2, 3])
    assert next(items) == 10
    assert list(items) == [20, 30] and prepared == [1, 2, 3]
    assert list(ahead(str, [])) == [] and list(ahead(str, [7])) == ["7"]


def test_an_error_while_preparing_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda item: 1 // item, [1, 0, 2]))


def test_pictures_from_files_bytes_and_functions(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, 1)
    pictures = [path, BytesIO(path.read_bytes()), partial(Image.open, path)]
    pixels = encode_pictures(pictures, 2, 3, lambda p: np.asarray(p, np.float32).mean(axis=(0, 1)), np.stack, None)
    assert pixels.shape == (3, 3) and (pixels == pixels[0]).all()


def test_pictures_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for picture in (tmp_path / "broken.png", BytesIO(b"no picture"), partial(Image.open, tmp_path / "broken.png")):
        with pytest.raises(RetrievalError, match="A picture cannot be decoded"):
            open_picture(picture)
    with pytest.raises(RetrievalError, match="A picture does not exist. Given: .*none.png"):
        open_picture(tmp_path / "none.png")
