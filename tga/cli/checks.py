"""What a check found: a fact for people, and perhaps a warning or a problem."""

from __future__ import annotations

from dataclasses import dataclass

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
