"""What every build and every search checks of its arguments."""

from __future__ import annotations

import numpy as np

from retrieval_index.errors import RetrievalError


def is_number(value: object) -> bool:
    """Whether a value is an int or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_count(value: object, name: str, remedy: str) -> None:
    """Raise RetrievalError unless `value` is a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RetrievalError(f"{name} must be a positive whole number", given=value, remedy=remedy)


def check_k(k: int, rows: int) -> None:
    """Raise RetrievalError where `k` neighbours cannot be had from `rows` captions."""
    if not 1 <= k <= rows:
        raise RetrievalError(
            "As many neighbours as asked for cannot be had",
            given=f"k={k}",
            allowed=f"1 to {rows}",
            remedy=f"k={min(10, rows)} (of tga-train: data.neighbours_k), or a larger corpus",
        )


def check_width(queries: np.ndarray, width: int) -> None:
    """Raise RetrievalError where queries are not `[queries, width]`."""
    if queries.ndim != 2 or queries.shape[1] != width:
        raise RetrievalError(
            "The queries do not fit the index",
            given=f"shape {list(queries.shape)}",
            allowed=f"[queries, {width}]",
            remedy="encode them with the encoder of the index",
        )
