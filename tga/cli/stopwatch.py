"""How long the stages of a command take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager


@dataclasses.dataclass
class Stopwatch:
    """Seconds by stage, as keys of the summary."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as `<name>_s`."""
        started = time.perf_counter()
        yield
        self.seconds[f"{name}_s"] = round(time.perf_counter() - started, 3)
