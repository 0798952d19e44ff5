"""Bytes and seconds as people write them."""

from __future__ import annotations

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.units import format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GiB", 16 * 2**30), ("1.5 gib", 3 * 2**29), ("500MB", 5 * 10**8), ("2T", None), (1024, 1024), ("7 B", 7)],
)
def test_bytes_in(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(RetrievalError, match="index.memory_budget=16GiB"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "0", "-1GiB", "1.2.3MB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(RetrievalError, match="no amount of memory"):
        parse_bytes(text)


def test_out() -> None:
    assert [format_bytes(n) for n in (12, 5_120_000, 2**30, 3.5 * 2**40)] == ["12 B", "4.9 MiB", "1.0 GiB", "3.5 TiB"]
    seconds = [format_seconds(n) for n in (0.2, 42, 600, 7800, 3 * 86400 + 3600)]
    assert seconds == ["under 1 s", "42 s", "10 min", "2 h 10 min", "3 d 1 h"]
