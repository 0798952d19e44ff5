"""The one sample type of every data source: a conversation, at most one picture, its caption and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Turn:
    """One utterance. The picture is no part of the text: it stands before the first user turn."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        id: unique within its data set.
        image: the picture's file, None for a text-only sample.
        turns: the conversation, beginning with the user.
        caption: what the picture shows, the text target of the alignment; None when there is none.
        neighbours: texts retrieved for the picture, nearest first; never the sample's own caption.
    """

    id: str
    image: Path | None
    turns: tuple[Turn, ...]
    caption: str | None
    neighbours: tuple[str, ...] = ()
