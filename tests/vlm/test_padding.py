"""Padding: on the side that was asked for, with a mask that says so, and with any token where there is none for it."""

from __future__ import annotations

from types import SimpleNamespace

from tga.vlm.padding import pad_rows, padding_id


def test_padding_sides() -> None:
    left, mask = pad_rows([[5], [6, 7]], 9, "left", "cpu")
    assert left.tolist() == [[9, 5], [6, 7]] and mask.tolist() == [[0, 1], [1, 1]]
    right, mask = pad_rows([[5], [6, 7]], 9, "right", "cpu")
    assert right.tolist() == [[5, 9], [6, 7]] and mask.tolist() == [[1, 0], [1, 1]]


def test_a_tokenizer_without_padding_gets_any_token() -> None:
    assert padding_id(SimpleNamespace(pad_token_id=None)) == 0
    assert padding_id(SimpleNamespace(pad_token_id=7)) == 7
