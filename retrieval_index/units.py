"""Bytes and seconds as people write them: `16GiB` in, `4.8 GiB` and `2 h 10 min` out."""

from __future__ import annotations

import re

from retrieval_index.errors import RetrievalError

BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15} | {
    f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", start=1)
}


def parse_bytes(text: str | int | float) -> int:
    """Bytes of `16GiB`, `500 MB`, `1.5TiB`; a bare number is bytes.

    Raises:
        RetrievalError: text of another form, or nothing at all.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(text))
    factors = {unit.lower(): factor for unit, factor in BYTES.items()}
    unit = (match.group(2) or "B").lower() if match else ""
    try:
        value = int(float(match.group(1)) * factors[unit]) if match else 0
    except (ValueError, KeyError):
        value = 0
    if value <= 0:
        raise RetrievalError(
            "This is no amount of memory", given=text, allowed="16GiB, 500MB, ...", remedy="index.memory_budget=16GiB"
        )
    return value


def format_bytes(count: float) -> str:
    """`4.8 GiB`: three digits at most, binary units."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1000 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """`40 s`, `12 min`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
