"""What every search checks of its arguments."""

from __future__ import annotations

import numpy as np

from retrieval_index.errors import RetrievalError


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
