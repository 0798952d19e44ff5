"""WebDataset: tar archives whose members of one name are one sample (`000017.jpg` with `000017.json` or `000017.txt`).

The archives are indexed once, by their headers; afterwards every picture is a place in a file and is read directly.
So samples keep one order that no number of workers or processes changes, and a run can be taken up anywhere. A member
`KEY.json` may be LLaVA's record, or an object with "caption"; a member `KEY.txt` is the caption. Sample ids are the
record's own "id", else KEY; pictures of one key stand in the order of their names (`17.0.jpg`, `17.1.jpg`).
"""

from __future__ import annotations

import glob
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tga.data.picture import ArchivedPicture
from tga.data.record import MALFORMED, Problem, Record
from tga.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
TEXTS = ("json", "txt")
INDEXED_TOGETHER = 8  # archives whose headers are read at once: on a network disk that waits, and does not compute
REMEDY = "data.shards=PATH/*.tar"


@dataclass
class _Member:
    """What an archive holds of one key."""

    pictures: dict[str, ArchivedPicture] = field(default_factory=dict)
    record: Any = None
    caption: str | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class WebDataset:
    """The samples of tar archives, a `tga.data.record.Source`.

    Attributes:
        shards: paths or patterns, taken in order of name (`train-{0..9}.tar` is written `train-*.tar`).
    """

    shards: tuple[str, ...]
    remedy: str = field(default=REMEDY, init=False)

    @property
    def name(self) -> str:
        """The patterns."""
        return ", ".join(self.shards)

    def records(self, limit: int | None = None) -> Iterator[Record]:
        """The rows in the order of the archives.

        Raises:
            UserError: no such archive, a compressed one, or one that is no tar.
        """
        numbers = itertools.count()
        archives = matching(self.shards, REMEDY)
        with ThreadPoolExecutor(INDEXED_TOGETHER) as pool:
            rows = (
                _record(next(numbers), key, member)
                for members in _ahead(pool, archives)
                for key, member in members.items()
            )
            yield from itertools.islice(rows, limit)


def matching(patterns: Sequence[str], remedy: str) -> list[str]:
    """The files of some patterns, each pattern's in order of name.

    Raises:
        UserError: a pattern that nothing matches.
    """
    found: list[str] = []
    for pattern in patterns:
        names = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise UserError("There is no such file", given=pattern, remedy=remedy)
        found.extend(names)
    return found


def _ahead(pool: ThreadPoolExecutor, archives: Sequence[str]) -> Iterator[dict[str, _Member]]:
    """The contents of the archives in order; a few are indexed ahead of where the reader is."""
    pending = [pool.submit(_index, name) for name in archives[:INDEXED_TOGETHER]]
    for number in range(len(archives)):
        yield pending.pop(0).result()
        if (following := number + INDEXED_TOGETHER) < len(archives):
            pending.append(pool.submit(_index, archives[following]))


def _index(archive: str) -> dict[str, _Member]:
    """Key -> its members, in the order of the archive. Pictures are not read."""
    found: dict[str, _Member] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                folder, _, base = info.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not info.isfile() or extension.lower().rpartition(".")[2] not in (*PICTURES, *TEXTS):
                    continue
                member = found.setdefault(f"{folder}/{stem}".lstrip("/"), _Member())
                _take(member, extension.lower(), info, tar, archive)
    except FileNotFoundError as error:
        raise UserError("There is no such archive", given=archive, remedy=REMEDY) from error
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"This archive cannot be read ({error})",
            given=archive,
            allowed="uncompressed tar archives: their pictures are read in place",
            remedy=f"gunzip a compressed archive, download a broken one again, or {REMEDY}",
        ) from error
    return found


def _take(member: _Member, extension: str, info: tarfile.TarInfo, tar: tarfile.TarFile, archive: str) -> None:
    kind = extension.rpartition(".")[2]
    if kind in PICTURES:
        member.pictures[extension] = ArchivedPicture(archive, info.name, info.offset_data, info.size)
    else:
        opened = tar.extractfile(info)
        assert opened is not None
        try:
            text = opened.read().decode("utf-8")
            if kind == "txt":
                member.caption = text.strip()
            else:
                member.record = json.loads(text)
        except ValueError as error:
            member.problem = Problem(MALFORMED, f"has a {kind} that cannot be read: {error}")


def _record(row: int, key: str, member: _Member) -> Record:
    record = member.record if isinstance(member.record, dict) else {}
    problem = member.problem
    if member.record is not None and not isinstance(member.record, dict):
        problem = Problem(MALFORMED, "has a json that is no object")
    caption = record.get("caption", member.caption)
    if problem is None and caption is None and "conversations" not in record:
        problem = Problem(MALFORMED, "has neither conversations nor a caption")
    pictures = tuple(member.pictures[extension] for extension in sorted(member.pictures))
    return Record(row, str(record.get("id", key)), pictures, record.get("conversations"), caption, problem)
