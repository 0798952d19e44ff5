"""What a terminal would obey is shown; everything else stays as it is."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.visible_text import visible, visible_lines
from tga.errors import UserError

BIDI = [0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]


def test_every_sign_that_a_terminal_obeys_is_shown() -> None:
    for number in range(sys.maxunicode + 1):
        sign = chr(number)
        obeyed = unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or number in BIDI
        assert visible(sign).isascii() and visible(sign).isprintable() if obeyed else visible(sign) == sign
        assert visible_lines(sign) == ("\n" if sign == "\n" else visible(sign))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a \u202egod", "a \\u202egod"),
        ("one\r\ntwo\tthree\b", "one\\r\\ntwo\\tthree\\x08"),
        ("name\udcff", "name\\udcff"),
        ("Zwei Äpfel, 二つ, 👩‍👧 नमस्ते", "Zwei Äpfel, 二つ, 👩‍👧 नमस्ते"),
    ],
)
def test_how_it_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown, "what has been shown once is shown again as it is"


@pytest.mark.parametrize("kind", [UserError, RetrievalError])
def test_messages_show_what_was_given(kind: type[UserError | RetrievalError]) -> None:
    error = kind("Bad \x1b]0;a\x07", given="\x9b2J\nx", allowed=["\u202ea"], remedy="mend\rit")
    assert str(error) == ("Bad \\x1b]0;a\\x07. Given: \\x9b2J\\nx. Allowed: ['\\u202ea']. To change it: mend\\rit.")
    assert error.given == "\x9b2J\nx", "the values themselves stay"
