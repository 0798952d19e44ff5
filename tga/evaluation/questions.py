"""Evaluation questions and the two layouts they are read from.

The generic layout is one JSON object per line: {"id", "prompt", "image"?, "format"?, "group"?, "expected"?,
"caption"?, "toxic"?, "request"?}; a picture's path is relative to the file. The toxic-scenes layout of the TGA paper is
a folder per scene, `{root}/{scene}/**/*.{jpg,jpeg,png}`, asked with one prompt for all (methods: HOD and ToViLaG have
such folders).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image

from retrieval_index.picture_files import opened, reason
from tga.errors import UserError

FORMATS = ("chat", "plain")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
SET_FILE = "evaluation.root=DIR, or evaluation.metrics.NAME.file=PATH within it"
MEND = "mend the line, or remove it"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


FIELDS = {"image": _is_text, "caption": _is_text, "request": _is_text, "expected": _is_texts, "toxic": _is_texts}
KNOWN = {"id", "prompt", "format", "group", *FIELDS}


@dataclass(frozen=True)
class Question:
    """One prompt to a model; `image` None asks the language model alone.

    expected: what a right answer names; alternatives within an entry are separated by "|".
    caption: the text a cosine compares the picture with.
    toxic: the words of the prompt that make it toxic, each a part of `prompt`; empty where nobody marked them.
    request: what is asked for, where the prompt does not say it (it stands in the picture, or is disguised).
    """

    id: str
    group: str
    prompt: str
    format: str
    image: Path | None = None
    expected: tuple[str, ...] = ()
    caption: str | None = None
    toxic: tuple[str, ...] = ()
    request: str | None = None


def read_questions(path: Path | str, *, limit: int | None = None) -> list[Question]:
    """Questions of a JSONL file (its first `limit` rows where given).

    Raises UserError for a missing or empty file, a row that is not as described above, a repeated id, missing pictures.
    """
    path = Path(path)
    if path.is_dir():
        problem = "a folder of pictures needs the prompt that is asked about each"
        raise UserError(problem, given=path, remedy="evaluation.metrics.NAME={file: FOLDER, prompt: TEXT}")
    if not path.is_file():
        raise UserError("the question file does not exist", given=path, remedy=SET_FILE)
    questions: list[Question] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if limit is not None and len(questions) >= limit:
                    break
                if line.strip():
                    questions.append(_question(line, number, path))
    except UnicodeDecodeError as error:
        raise UserError("the question file is not UTF-8 text", given=f"{path}: {error}", remedy=SET_FILE) from error
    return checked_questions(questions, path)


def read_toxic_scenes(
    root: Path | str, prompt: str, *, format: str = "chat", limit: int | None = None
) -> list[Question]:
    """Questions of a folder per scene, one per picture; `group` is the scene.

    limit: pictures per scene. Raises UserError where there is no such folder or no picture in it.
    """
    root = Path(root)
    if root.is_file():
        problem = "a file of questions has its own prompts"
        raise UserError(problem, given=f"{root}, prompt={prompt}", remedy="evaluation.metrics.NAME={file: FILE}")
    if not root.is_dir():
        raise UserError("the folder of toxic scenes does not exist", given=root, remedy=SET_FILE)
    questions = []
    for scene in sorted(folder for folder in root.iterdir() if folder.is_dir()):
        pictures = sorted(file for file in scene.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
        for picture in pictures[:limit]:
            identity = picture.relative_to(root).as_posix()
            questions.append(Question(identity, scene.name, prompt, format, picture))
    return checked_questions(questions, root)


def _question(line: str, number: int, path: Path) -> Question:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"line {number} of {path} is not JSON", given=line.strip()[:80], remedy=MEND) from error
    if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("prompt"), str):
        raise UserError(
            f"line {number} of {path} is not a question",
            given=line.strip()[:80],
            allowed='an object with "id" and "prompt"',
            remedy=MEND,
        )
    misspelt = [f"{key} ({close[0]}?)" for key in set(row) - KNOWN if (close := get_close_matches(key, KNOWN, 1, 0.75))]
    if misspelt:
        problem = f"line {number} of {path} has a field that looks misspelt"
        raise UserError(problem, given=", ".join(sorted(misspelt)), allowed=", ".join(sorted(KNOWN)), remedy=MEND)
    strange = [key for key, holds in FIELDS.items() if row.get(key) is not None and not holds(row[key])]
    if strange:
        raise UserError(
            f"line {number} of {path} has a field of another kind",
            given={key: row[key] for key in strange},
            allowed='"image", "caption", "request": text; "expected", "toxic": text or a list of texts',
            remedy=MEND,
        )
    toxic = _texts(row.get("toxic"))
    foreign = [words for words in toxic if not words or words not in row["prompt"]]
    if foreign:
        problem = f'"toxic" of line {number} of {path} is no part of its prompt'
        raise UserError(problem, given=foreign, allowed=row["prompt"], remedy=MEND)
    form = row.get("format", "chat")
    if form not in FORMATS:
        raise UserError(f"line {number} of {path} has an unknown format", given=form, allowed=FORMATS, remedy=MEND)
    return Question(
        id=str(row["id"]),
        group=str(row.get("group") or ""),
        prompt=row["prompt"],
        format=form,
        image=path.parent / row["image"] if row.get("image") else None,
        expected=_texts(row.get("expected")),
        caption=row.get("caption"),
        toxic=toxic,
        request=row.get("request"),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """One text or a list of them as a tuple; empty for none."""
    return (value,) if isinstance(value, str) else tuple(str(entry) for entry in value or ())


def checked_questions(questions: list[Question], source: Path) -> list[Question]:
    """The same questions; UserError where there is none, an id comes twice, or a picture is missing or none."""
    if not questions:
        raise UserError("there is no question to ask", given=source, remedy="give a file or folder that is not empty")
    _refuse_repeats((question.id for question in questions), source)
    missing = [question.image for question in questions if question.image is not None and not question.image.exists()]
    if missing:
        first = ", ".join(str(picture) for picture in missing[:3])
        raise UserError(
            f"{len(missing)} of {len(questions)} pictures of {source} do not exist",
            given=first,
            remedy="picture paths are relative to the question file",
        )
    broken = [said for question in questions if question.image is not None and (said := _no_picture(question.image))]
    if broken:
        raise UserError(
            f"{len(broken)} of {len(questions)} pictures of {source} are no pictures",
            given="; ".join(broken[:3]),
            remedy="replace them, or take their questions out",
        )
    return questions


def _no_picture(path: Path) -> str | None:
    """What is wrong with a picture's header; None where it has one. The picture itself is decoded when it is asked."""
    try:
        with opened(path):
            return None
    except (OSError, Image.DecompressionBombError) as error:
        return f"{path}: {reason(error)}"


def _refuse_repeats(ids: Iterable[str], source: Path) -> None:
    seen: set[str] = set()
    for identity in ids:
        if identity in seen:
            raise UserError(f"two questions of {source} have the same id", given=identity, remedy="make the ids unique")
        seen.add(identity)
