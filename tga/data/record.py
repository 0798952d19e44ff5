"""One row of a data set before anything about it was judged, and the judgement: a sample, or what is wrong with it.

All sources yield records in the shape of LLaVA's JSON, so that conversations are read in one place. The loader and the
verification ask the same question of a record: :func:`problem_of`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tga.data.picture import Picture
from tga.data.sample import IMAGE_MARKER, Sample, Turn

ROLES: dict[str, Any] = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
# Kinds of problems, as they stand in a bad list.
MALFORMED, NO_ID, DUPLICATE_ID, EMPTY_CAPTION = "malformed", "no_id", "duplicate_id", "empty_caption"
OUTSIDE, MISSING, UNREADABLE, TRUNCATED, OVERSIZED = (
    "outside_image_root", "missing_image", "unreadable_image", "truncated_image", "oversized_image",
)  # fmt: skip
FORM = "is not of the form {id, image, conversations: [{from: human | gpt, value}]}"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record: its kind, and what was found."""

    kind: str
    detail: str


@dataclass(frozen=True)
class Record:
    """One row as found.

    Attributes:
        row: its number in the data set, from 0.
        id: empty where it has none.
        images: where its pictures are.
        conversations: a list of {from, value} (or {role, content}), or None for a record of a caption alone.
        caption: what the pictures show, where the data says it.
        problem: what the source itself found wrong.
    """

    row: int
    id: str
    images: tuple[Picture, ...]
    conversations: Any
    caption: str | None = None
    problem: Problem | None = None


class Source(Protocol):
    """A data set on disk."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    @property
    def remedy(self) -> str:
        """The option that names another one."""
        ...

    def records(self, limit: int | None = None) -> Iterator[Record]:
        """The rows in their order, the first `limit` of them; a UserError where there is no such data set."""
        ...


def problem_of(record: Record) -> Problem | None:
    """What makes a sample of the record impossible; pictures are not opened."""
    if record.problem is not None:
        return record.problem
    if not record.id:
        return Problem(NO_ID, f"record {record.row} has no id")
    turns = _turns(record)
    if isinstance(turns, Problem):
        return turns
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in turns)
    images = len(record.images)
    if markers != images and (markers or images > 1):
        return Problem(MALFORMED, f"has {markers} image markers and {images} pictures")
    return None


def empty_caption(record: Record) -> Problem | None:
    """The problem of a record whose caption, or one of whose answers, has no words: nothing can be learned from it."""
    turns = _turns(record)
    answers = [] if isinstance(turns, Problem) else [turn.text for turn in turns if turn.role == "assistant"]
    if record.caption is not None:
        answers.append(record.caption)
    return Problem(EMPTY_CAPTION, "an answer or the caption is empty") if not all(map(str.strip, answers)) else None


def to_sample(record: Record) -> Sample:
    """The sample of a record without a problem.

    The marker of a single picture is taken out of the text; those of several stay where they are.
    """
    turns = _turns(record)
    assert not isinstance(turns, Problem)
    caption = record.caption
    if caption is None and len(turns) == 2:
        caption = turns[1].text.strip()
    if len(record.images) < 2:
        turns = [Turn(turn.role, turn.text.replace(IMAGE_MARKER, "").strip()) for turn in turns]
    return Sample(record.id, record.images, tuple(turns), caption if record.images else None)


def _turns(record: Record) -> list[Turn] | Problem:
    """User and assistant in turn, or why not.

    An answer at the beginning that no question leads to, and a question at the end without an answer, are left out, as
    LLaVA's own code does for its 665K: nothing is learnt from either.
    """
    entries = record.conversations
    if entries is None:
        entries = [{"from": "human", "value": ""}, {"from": "gpt", "value": record.caption}]
    try:
        turns = [Turn(ROLES[_either(entry, "from", "role")], _either(entry, "value", "content")) for entry in entries]
    except (KeyError, TypeError, AttributeError):
        return Problem(MALFORMED, FORM)
    if not all(isinstance(turn.text, str) for turn in turns):
        return Problem(MALFORMED, FORM)
    if record.conversations is not None:
        turns = turns[bool(turns) and turns[0].role == "assistant" :]
        turns = turns[: len(turns) - (bool(turns) and turns[-1].role == "user")]
    if not turns or len(turns) % 2 or any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
        return Problem(MALFORMED, "does not alternate between human and gpt, beginning with human")
    if any(IMAGE_MARKER in turn.text for turn in turns if turn.role == "assistant"):
        return Problem(MALFORMED, "has an image marker in an answer")
    return turns


def _either(entry: Any, first: str, second: str) -> Any:
    """The value of the first key, else of the second: a table may have both columns, one of them empty."""
    return entry[first] if entry.get(first) is not None else entry[second]


def inside(name: str, root: Path) -> Path | Problem:
    """The path of a picture named relative to `root`, or the problem that it leaves it."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        return Problem(OUTSIDE, name)
    return root / path
