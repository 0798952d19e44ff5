"""LLaVA's JSON as published: `[{id, image, conversations: [{from: human | gpt, value}]}]` beside a folder of pictures.

Of a record with one picture the marker `<image>` may stand anywhere in its questions; it is taken out, since the
picture always stands before the first of them. `image` may be a list: then each picture has its marker in the text.
The caption is the record's "caption" where there is one, else the answer of a record of one question and one answer
(the image-caption data of the projector stage).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tga.data.loading import load_samples
from tga.data.picture import Picture
from tga.data.record import MALFORMED, MISSING, Problem, Record, inside
from tga.data.sample import Sample
from tga.errors import UserError


def load_llava_json(path: Path, image_root: Path, *, limit: int | None = None) -> list[Sample]:
    """All samples of a data set without flaws, without neighbours; `limit` keeps the first records only.

    Raises:
        UserError: see `tga.data.loading.load_samples`; nothing is left out here.
    """
    return list(load_samples(LlavaJson(Path(path), Path(image_root)), limit=limit).samples)


@dataclass(frozen=True)
class LlavaJson:
    """The records of a JSON file, a `tga.data.record.Source`."""

    path: Path
    image_root: Path
    remedy: str = field(default="data.json=PATH data.image_root=PATH", init=False)

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def records(self, limit: int | None = None) -> Iterator[Record]:
        """The rows in the order of the file.

        Raises:
            UserError: no such file, or not a list of records.
        """
        listing = _Listing()
        for row, record in enumerate(_read(self.path)[:limit]):
            yield self._record(row, record, listing)

    def _record(self, row: int, record: dict[str, Any], listing: _Listing) -> Record:
        named = record.get("image") or []
        names = named if isinstance(named, list) else [named]
        images: list[Picture] = []
        problem = None if all(isinstance(n, str) for n in names) else Problem(MALFORMED, "has an image that is no path")
        for name in names if problem is None else ():
            found = inside(name, self.image_root)
            if isinstance(found, Problem):
                problem = found
            elif not listing.holds(found):
                problem = Problem(MISSING, str(found))
            else:
                images.append(found)
        identifier = record.get("id", "")
        return Record(
            row,
            "" if identifier is None else str(identifier),
            tuple(images),
            record.get("conversations", ()),
            record.get("caption"),
            problem,
        )


class _Listing:
    """Which files are there, by one listing per folder: half a million look-ups take minutes on a network disk."""

    def __init__(self) -> None:
        self._folders: dict[str, set[str]] = {}

    def holds(self, path: Path) -> bool:
        folder, file = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        return file in self._folders[folder]


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("There is no data file here", given=path, remedy="data.json=PATH") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The data file is not JSON ({error})", given=path, remedy="data.json=PATH") from error
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(
            "The data file is not a list of records", given=path, allowed="LLaVA's JSON", remedy="data.json=PATH"
        )
    return records
