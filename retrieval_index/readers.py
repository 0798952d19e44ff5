"""Readers of caption files, one per suffix: each yields (id, caption or None) of every record.

A new format is one function in `READERS`. Records without an id are named after their file and place:
`captions.txt:17`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_index.errors import RetrievalError
from retrieval_index.files import file_sha256
from retrieval_index.tables import MEND, not_utf8, table_rows

CAPTION_KEYS = ("caption", "text")
ID_KEYS = ("id", "key")
Records = Iterator[tuple[str, str | None]]


@dataclass(frozen=True)
class Keys:
    """Where a record keeps its caption and its id; None: `caption` or `text`, and `id` or `key`.

    A number is a column, counted from 1, of a .csv or .tsv whose first line is a record like any other (CC3M, CC12M).
    """

    caption: str | int | None = None
    id: str | int | None = None

    def caption_of(self, row: Mapping[str, Any]) -> str | None:
        """The caption of a record; None where it has none."""
        values = (row.get(str(key)) for key in ([self.caption] if self.caption else CAPTION_KEYS))
        found = next((value for value in values if isinstance(value, str)), None)
        return found if found is not None or self.caption else single_answer(row.get("conversations"))

    def id_of(self, row: Mapping[str, Any], fallback: str) -> str:
        """The id of a record."""
        values = (row.get(str(key)) for key in ([self.id] if self.id else ID_KEYS))
        return next((str(value) for value in values if value is not None), fallback)

    def columns(self, names: Sequence[str], file: Path) -> tuple[str, str | None]:
        """The caption's and the id's column of a table (names of columns may be in capitals).

        Raises:
            RetrievalError: no column with captions, or none of the name asked for.
        """
        by_name = {name.lower(): name for name in reversed(names)} | {name: name for name in names}
        caption = next(
            (by_name[key] for key in ([self.caption] if self.caption else CAPTION_KEYS) if key in by_name), None
        )
        identifier = next((by_name[key] for key in ([self.id] if self.id else ID_KEYS) if key in by_name), None)
        if caption is None or (self.id is not None and identifier is None):
            raise RetrievalError(
                "A table has no column of captions" if caption is None else "A table has no column of this name",
                given=f"{file} with the columns {', '.join(names)}",
                remedy="index.caption_key=COLUMN index.id_key=COLUMN",
            )
        return caption, identifier


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """The caption files that `paths` name: files, folders (searched whole) and glob patterns, each file once.

    Raises:
        RetrievalError: nothing named, nothing found, or a file whose format is not read.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in READERS)
            visible = [file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts)]
            if not visible:
                raise _nothing(path, "A folder holds no caption file")
            found.update(dict.fromkeys(visible))
        elif glob.has_magic(str(path)) and not path.exists():
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not matches:
                raise _nothing(path, "A pattern matches no file")
            found.update(dict.fromkeys(_checked(match) for match in matches))
        else:
            found[_checked(path)] = None
    if not found:
        raise RetrievalError("No caption file was given", remedy="captions=PATH or captions=[PATH,PATH]")
    return list(found)


def read_records(file: Path, keys: Keys) -> Records:
    """(id, caption) of every record of a caption file.

    Raises:
        RetrievalError: a file that is broken, or not of the form its suffix says, or numbers of columns where columns
            have names.
    """
    suffix = file.suffix.lower()
    if isinstance(keys.caption, int) or isinstance(keys.id, int):
        if suffix not in (".csv", ".tsv") or not isinstance(keys.caption, int) or isinstance(keys.id, str):
            given = f"{file}, index.caption_key={keys.caption}, index.id_key={keys.id}"
            problem = "Numbers name the columns of a .csv or .tsv without a line of names, of both or of the caption"
            raise RetrievalError(problem, given=given, remedy="index.caption_key=2 index.id_key=1, or names of both")
        return _read_headless(file, keys.caption, keys.id)
    return READERS[suffix](file, keys)


def hash_content(file: Path) -> str:
    """SHA-256 of a file's bytes; of an archive only what is not a picture, which may be a thousand times as much."""
    if file.suffix.lower() != ".tar":
        return file_sha256(file)
    digest = hashlib.sha256()
    for name, content in _text_members(file):
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def single_answer(turns: Any) -> str | None:
    """The answer of a LLaVA conversation of one question and one answer, as in its projector stage; else None."""
    if not isinstance(turns, list) or len(turns) != 2:
        return None
    answer = turns[1]
    if not isinstance(answer, Mapping) or answer.get("from") != "gpt" or not isinstance(answer.get("value"), str):
        return None
    return str(answer["value"])


def _checked(file: Path) -> Path:
    if file.suffix.lower() not in READERS:
        raise RetrievalError(
            "The format of a caption file is not read",
            given=file,
            allowed=", ".join(READERS),
            remedy="rename or convert the file",
        )
    if not file.is_file():
        raise RetrievalError("A caption file does not exist", given=file, remedy="captions=PATH of an existing file")
    return file


def _nothing(path: Path, problem: str) -> RetrievalError:
    allowed = f"files ending in {', '.join(READERS)}"
    return RetrievalError(problem, given=path, allowed=allowed, remedy="captions=PATH of a file, folder or pattern")


def _read_text(file: Path, keys: Keys) -> Records:
    for number, line in _lines(file):  # an empty line is an empty caption, and counted
        yield f"{file.name}:{number}", line


def _read_json_lines(file: Path, keys: Keys) -> Records:
    for number, line in _lines(file):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RetrievalError("A line is not JSON", given=f"{file}:{number}: {error}", remedy=MEND) from error
            yield _from_row(row, f"{file.name}:{number}", file, keys)


def _read_json(file: Path, keys: Keys) -> Records:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RetrievalError("A caption file is not JSON in UTF-8", given=f"{file}: {error}", remedy=MEND) from error
    if not isinstance(rows, list):
        given = f"{file}: a {type(rows).__name__}"
        raise RetrievalError("A .json caption file must hold a list", given=given, remedy=MEND)
    for number, row in enumerate(rows):
        yield _from_row(row, f"{file.name}:{number}", file, keys)


def _read_csv(file: Path, keys: Keys) -> Records:
    """A table with a line of names."""
    rows = table_rows(file)
    names = next(rows, (0, []))[1]
    caption, identifier = keys.columns(names, file)
    places = [None if name is None else names.index(name) for name in (caption, identifier)]
    for number, (_, row) in enumerate(rows, start=1):
        if row:
            text, key = (None if place is None or place >= len(row) else row[place] for place in places)
            yield key or f"{file.name}:{number}", text


def _read_headless(file: Path, caption: int, identifier: int | None) -> Records:
    """A table whose columns have numbers."""
    for line, row in table_rows(file):
        if row and max(caption, identifier or 0) > len(row):
            given = f"{file} line {line}: {len(row)} columns"
            raise RetrievalError("A line has fewer columns", given=given, remedy="index.caption_key=NUMBER, or " + MEND)
        if row:
            yield (row[identifier - 1] if identifier else "") or f"{file.name}:{line}", row[caption - 1]


def _read_parquet(file: Path, keys: Keys) -> Records:
    try:
        with pq.ParquetFile(file) as table:
            caption, identifier = keys.columns(table.schema_arrow.names, file)
            number = 0
            for batch in table.iter_batches(columns=[name for name in (caption, identifier) if name]):
                captions = batch.column(caption).to_pylist()
                ids = batch.column(identifier).to_pylist() if identifier else [None] * len(captions)
                for text, key in zip(captions, ids, strict=True):
                    yield (
                        str(key) if key is not None else f"{file.name}:{number}",
                        text if isinstance(text, str) else None,
                    )
                    number += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise RetrievalError("A Parquet file cannot be read", given=f"{file}: {error}", remedy=MEND) from error


def _read_web_dataset(file: Path, keys: Keys) -> Records:
    """Samples of an archive: the members of one name; the caption is `.txt`, `.caption`, or in the sample's `.json`."""
    name, parts = "", dict[str, bytes]()
    for member, content in _text_members(file):
        stem, _, extension = PurePosixPath(member).name.partition(".")
        sample = str(PurePosixPath(member).with_name(stem))
        if sample != name and name:
            yield _from_parts(name, parts, file, keys)
        if sample != name:
            name, parts = sample, {}
        parts[extension.lower()] = content
    if name:
        yield _from_parts(name, parts, file, keys)


def _text_members(file: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's members, in their order; what is no text is named and not read."""
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isfile():
                    text = member.name.lower().endswith((".txt", ".caption", ".json"))
                    stream = archive.extractfile(member) if text else None
                    yield member.name, stream.read() if stream is not None else b""
    except (tarfile.TarError, EOFError) as error:
        raise RetrievalError("A tar archive cannot be read", given=f"{file}: {error}", remedy=MEND) from error


def _from_parts(name: str, parts: Mapping[str, bytes], file: Path, keys: Keys) -> tuple[str, str | None]:
    try:
        row = json.loads(parts["json"]) if "json" in parts else {}
        plain = next((parts[key].decode("utf-8") for key in ("txt", "caption") if key in parts), None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        given = f"{file}: {name}: {error}"
        raise RetrievalError("A member of an archive is not JSON or not UTF-8", given=given, remedy=MEND) from error
    row = row if isinstance(row, Mapping) else {}
    caption = plain if plain is not None and keys.caption is None else keys.caption_of(row)
    return keys.id_of(row, name) if keys.id else name, caption


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            yield from enumerate(stream, start=1)
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from error


def _from_row(row: Any, fallback_id: str, file: Path, keys: Keys) -> tuple[str, str | None]:
    if not isinstance(row, Mapping):
        given = f"{fallback_id} of {file}: {type(row).__name__}"
        raise RetrievalError("A row must be a JSON object", given=given, remedy=MEND)
    return keys.id_of(row, fallback_id), keys.caption_of(row)


READERS: dict[str, Callable[[Path, Keys], Records]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".tar": _read_web_dataset,
}
