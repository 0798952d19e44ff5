"""Text of captions, ids, answers and paths where somebody reads it: nothing in it moves a cursor or turns a line round.

What a terminal would obey is shown as an escape instead (`\\x1b`, `\\n`, `\\u202e`): control characters of both sets,
marks that change the direction of writing, separators of lines, and surrogates, which cannot be printed at all.
"""

from __future__ import annotations

import re

_BEYOND_ASCII = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_OBEYED = re.compile(f"[\x00-\x1f{_BEYOND_ASCII}]")
_OBEYED_IN_LINES = re.compile(f"[\x00-\x09\x0b-\x1f{_BEYOND_ASCII}]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: object) -> str:
    """A text on one line."""
    return _OBEYED.sub(_escape, str(text))


def visible_lines(text: object) -> str:
    """A text whose lines stay."""
    return _OBEYED_IN_LINES.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    sign = match[0]
    return _SHORT.get(sign) or (f"\\x{ord(sign):02x}" if ord(sign) < 0x100 else f"\\u{ord(sign):04x}")
