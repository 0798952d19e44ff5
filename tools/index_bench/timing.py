"""Two functions that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def ratio_of_medians(one: Callable[[], object], other: Callable[[], object], turns: int) -> float:
    """Median seconds of `one` over those of `other`, one turn each in alternating order, after a first call."""
    one(), other()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            times[side].append(seconds((one, other)[side]))
    return statistics.median(times[0]) / statistics.median(times[1])
