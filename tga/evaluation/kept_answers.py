"""Answers and verdicts that outlive a killed evaluation: each batch is written as it is there, and not asked again.

One file per model or judge: a first line that says what the answers depend on, then a line per answer,

    {"identity": "<digest>"}
    {"asked": "<digest of the questions>", "row": 17, "answer": "..."}

A file of another identity is begun anew. A last line that was cut off is dropped. A batch is asked again as a whole
where one of its answers is missing, so that the answers are those of an evaluation that nobody stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tga.errors import UserError
from tga.evaluation.questions import Question
from tga.files import atomic_path, remove_ours


def asked_of(questions: Sequence[Question]) -> list[tuple[Any, ...]]:
    """What answers to these questions depend on: ids, prompts, and the pictures' files."""
    return [(q.id, q.prompt, q.format, None if q.image is None else file_stamp(q.image)) for q in questions]


def file_stamp(path: Path) -> tuple[str, int, int]:
    """A file's absolute path, its size, and when it was changed, in ns."""
    state = path.stat()
    return str(path.absolute()), state.st_size, state.st_mtime_ns


class KeptAnswers:
    """The answers of one model, in memory and in a file that grows.

    Args:
        path: the file; its folder is made.
        identity: all that the answers depend on beside the questions, of JSON's kinds.

    Raises:
        UserError: something else stands at `path`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = _digest(dict(identity))
        self._answers: dict[str, dict[int, str]] = defaultdict(dict)
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = self._read()
        if sound == 0:
            self._refuse_other_file()
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({"identity": self._identity}) + "\n", encoding="utf-8")
        elif sound < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(sound)

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))

    def of(self, rows: Sequence[Any]) -> AnswersToQuestions:
        """Those to these rows, by number. rows: of JSON's kinds, such as `asked_of` gives them."""
        asked = _digest(list(rows))
        return AnswersToQuestions(self.path, asked, self._answers[asked])

    def _refuse_other_file(self) -> None:
        """Raise UserError where the file is there and is none of this class."""
        if self.path.is_file() and self.path.stat().st_size and not _is_kept(self.path):
            raise UserError(
                "The answers would be kept in a file that no evaluation wrote",
                given=self.path,
                remedy="run_dir=ANOTHER_DIRECTORY, or move the file",
            )

    def _read(self) -> int:
        """Take in the file's answers; returns how many bytes of it are sound, 0 where it is of something else."""
        sound = 0
        if not self.path.is_file():
            return sound
        with self.path.open("rb") as lines:
            for line in lines:
                row = _object(line)
                if row is None or (sound == 0 and row.get("identity") != self._identity):
                    break
                if sound > 0:
                    asked, number, answer = row.get("asked"), row.get("row"), row.get("answer")
                    if not isinstance(asked, str) or not isinstance(number, int) or not isinstance(answer, str):
                        break
                    self._answers[asked][number] = answer
                sound += len(line)
        return sound


class AnswersToQuestions:
    """The answers to one list of questions: `known` by row, and `keep` for those of a batch."""

    def __init__(self, path: Path, asked: str, known: dict[int, str]) -> None:
        self._path, self._asked = path, asked
        self.known = known

    def keep(self, answers: Mapping[int, str]) -> None:
        """Write the answers of a batch, by row, behind the others."""
        rows = [{"asked": self._asked, "row": row, "answer": answer} for row, answer in answers.items()]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.known.update(answers)


def remove_kept(folder: Path) -> None:
    """Remove the files of kept answers from a folder, and the folder where nothing else is in it."""
    remove_ours(folder, lambda name: _is_kept(folder / name))
    with suppress(OSError):  # there is none, or something else is in it
        folder.rmdir()


def _is_kept(path: Path) -> bool:
    """Whether a file begins as those of this module do."""
    with path.open("rb") as lines:
        return set(_object(lines.readline()) or ()) == {"identity"}


def _object(line: bytes) -> dict[str, Any] | None:
    """A whole line of JSON that is an object; None for anything else, such as a line that was cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
