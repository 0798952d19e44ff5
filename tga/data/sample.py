"""The one sample type of every data source: a conversation, its pictures, its caption and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tga.data.picture import Picture

IMAGE_MARKER = "<image>"


@dataclass(frozen=True)
class Turn:
    """One utterance. A single picture is no part of the text: it stands before the first user turn.

    In a sample of several pictures every one has its `<image>` in the text, in the order of the pictures.
    """

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        id: unique within its data set.
        images: where its pictures are, none for a text-only sample.
        turns: the conversation, beginning with the user.
        caption: what the pictures show, the text target of the alignment; None when there is none.
        neighbours: texts retrieved for the picture, nearest first; never the sample's own caption.
    """

    id: str
    images: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    caption: str | None
    neighbours: tuple[str, ...] = ()
