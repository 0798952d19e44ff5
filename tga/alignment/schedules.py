"""Weight of a loss term over a run, as a factor of the progress t = step / total steps in 0..1."""

from __future__ import annotations

from collections.abc import Callable

from tga.errors import UserError

Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear_decay(progress: float) -> float:
    """1 - t."""
    return 1.0 - progress


def quadratic_decay(progress: float) -> float:
    """(1 - t) squared."""
    return (1.0 - progress) ** 2


def linear_growth(progress: float, share: float) -> float:
    """From 0 at the start to 1 at t = `share`, then 1; 1 throughout where `share` is 0."""
    return min(progress / share, 1.0) if share else 1.0


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear_decay": linear_decay,
    "quadratic_decay": quadratic_decay,
}


def schedule_named(name: str) -> Schedule:
    """The schedule of that name; UserError lists those there are."""
    if name not in SCHEDULES:
        raise UserError(
            "Unknown schedule",
            given=name,
            allowed=", ".join(SCHEDULES),
            remedy="alignment.pair_schedule=... or alignment.rank_schedule=...",
        )
    return SCHEDULES[name]
