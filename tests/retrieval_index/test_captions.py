"""What counts as the same caption."""

from __future__ import annotations

import pytest

from retrieval_index.captions import caption_key, normalise


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A  red\tcar ", "a red car"),
        ("\uff21 \uff52\uff45\uff44 car", "a red car"),  # full-width letters
        ("\ufb01sh", "FISH"),  # the ligature fi
        ("STRASSE", "stra\u00dfe"),
        ("a\u00a0b", "a b"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_normalise_joins(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
    assert caption_key(normalise(one)) == caption_key(normalise(other))


def test_normalise_keeps_apart_what_differs() -> None:
    texts = [normalise(text) for text in ("a cat", "a cat.", "acat", "a cats")]
    assert len(set(texts)) == len({caption_key(text) for text in texts}) == 4


def test_a_key_has_16_bytes_for_any_text() -> None:
    assert {len(caption_key(text)) for text in ("", "a", "\u4e2d" * 1000, "\ud800")} == {16}
