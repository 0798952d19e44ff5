"""What a check found: a fact for people, and perhaps a warning or a problem."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tga.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name, found: what it is, and what was found of it.
        warning: what may go wrong.
        problem: what will.
    """

    name: str
    found: str
    warning: str | None = None
    problem: UserError | None = None


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return path if path.exists() else next(parent for parent in path.parents if parent.exists())
