"""Reading a caption corpus: text files, JSON lines and LLaVA JSON; every distinct caption is kept once.

Two captions are the same when they agree after normalisation (Unicode NFKC, case folded, runs of white space as one
space). The first spelling is the one that is kept and encoded; the ids of all its copies are kept with it.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_index.errors import RetrievalError

CAPTION_KEYS = ("caption", "text")
MEND = "mend the file, or captions=PATH of another one"


@dataclass(frozen=True)
class Corpus:
    """The distinct captions of some files.

    Args:
        texts: one spelling of every distinct caption, in the order of first appearance.
        ids: for each caption the ids of all records that hold it, the first one first.
        read: number of records read.
        duplicates: records whose caption was there already.
        without_caption: records with an empty caption or none.
        sha256: hash over the bytes of the files, see `hash_files`.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[str, ...], ...]
    read: int
    duplicates: int
    without_caption: int
    sha256: str


def normalise(text: str) -> str:
    """The form in which captions are compared: NFKC, case folded, white space collapsed and stripped."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_corpus(paths: Sequence[str | Path]) -> Corpus:
    """Read caption files (.txt: a caption per line; .jsonl: `caption` or `text`; .json: LLaVA or a list of such rows).

    Records without an id are named after their file and line: `captions.txt:17`.

    Raises:
        RetrievalError: a file that is missing, of another format, broken, or a corpus without a single caption.
    """
    files = check_files(paths)
    rows_by_key: dict[str, int] = {}
    texts: list[str] = []
    ids: list[list[str]] = []
    read = without_caption = 0
    for file in files:
        for identifier, caption in READERS[file.suffix.lower()](file):
            read += 1
            text = " ".join(caption.split()) if caption else ""
            key = normalise(text)
            if not key:
                without_caption += 1
                continue
            row = rows_by_key.setdefault(key, len(texts))
            if row == len(texts):
                texts.append(text)
                ids.append([])
            ids[row].append(identifier)
    if not texts:
        raise RetrievalError(
            "The corpus holds no captions",
            given=f"{', '.join(map(str, files))} with {read} records",
            allowed="a line of .txt, the key 'caption' or 'text' of a JSON row, the one answer of a LLaVA record",
            remedy="captions=PATH of a file that holds captions",
        )
    merged = tuple(tuple(dict.fromkeys(copies)) for copies in ids)
    duplicates = read - without_caption - len(texts)
    return Corpus(tuple(texts), merged, read, duplicates, without_caption, hash_files(files))


def check_files(paths: Sequence[str | Path]) -> list[Path]:
    """The caption files as paths.

    Raises:
        RetrievalError: no file at all, a missing one, or one whose format is not read.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise RetrievalError("No caption file was given", remedy="captions=PATH or captions=[PATH,PATH]")
    for file in files:
        if file.suffix.lower() not in READERS:
            raise RetrievalError(
                "The format of a caption file is not read",
                given=file,
                allowed=", ".join(READERS),
                remedy="rename or convert the file",
            )
        if not file.is_file():
            raise RetrievalError(
                "A caption file does not exist", given=file, remedy="captions=PATH of an existing file"
            )
    return files


def hash_files(paths: Sequence[str | Path]) -> str:
    """SHA-256 over sizes and bytes of the files, in their order; their names and places do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{Path(path).stat().st_size}:".encode())
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_text(file: Path) -> Iterator[tuple[str, str | None]]:
    for number, line in _lines(file):
        if line.strip():
            yield f"{file.name}:{number}", line


def _read_json_lines(file: Path) -> Iterator[tuple[str, str | None]]:
    for number, line in _lines(file):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RetrievalError("A line is not JSON", given=f"{file}:{number}: {error}", remedy=MEND) from error
            yield _from_row(row, f"{file.name}:{number}", file)


def _read_json(file: Path) -> Iterator[tuple[str, str | None]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RetrievalError("A caption file is not JSON in UTF-8", given=f"{file}: {error}", remedy=MEND) from error
    if not isinstance(rows, list):
        given = f"{file}: a {type(rows).__name__}"
        raise RetrievalError("A .json caption file must hold a list", given=given, remedy=MEND)
    for number, row in enumerate(rows):
        yield _from_row(row, f"{file.name}:{number}", file)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(file, encoding="utf-8") as stream:
            yield from enumerate(stream, start=1)
    except UnicodeDecodeError as error:
        raise RetrievalError("A caption file is not UTF-8", given=f"{file}: {error}", remedy=MEND) from error


def _from_row(row: Any, fallback_id: str, file: Path) -> tuple[str, str | None]:
    if not isinstance(row, Mapping):
        given = f"{fallback_id} of {file}: {type(row).__name__}"
        raise RetrievalError("A row must be a JSON object", given=given, remedy=MEND)
    identifier = str(row["id"]) if row.get("id") is not None else fallback_id
    for key in CAPTION_KEYS:
        value = row.get(key)
        if isinstance(value, str):
            return identifier, value
    return identifier, _single_answer(row.get("conversations"))


def _single_answer(turns: Any) -> str | None:
    """The answer of a LLaVA conversation of one question and one answer, as in its projector stage; else None."""
    if not isinstance(turns, list) or len(turns) != 2:
        return None
    answer = turns[1]
    if not isinstance(answer, Mapping) or answer.get("from") != "gpt" or not isinstance(answer.get("value"), str):
        return None
    return str(answer["value"])


READERS: dict[str, Callable[[Path], Iterator[tuple[str, str | None]]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
}
