"""LLaVA's JSON as published: `[{id, image, conversations: [{from: human | gpt, value}]}]` beside a folder of pictures.

The marker `<image>` may stand anywhere in the first human turn; it is taken out, since the picture always stands
before that turn. The caption is the record's "caption" where there is one, else the answer of a record of one
question and one answer (the image-caption data of the projector stage). All problems of a file are found before any
work begins.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from tga.data.sample import IMAGE_MARKER, Sample, Turn
from tga.errors import UserError

ROLES: dict[str, Any] = {"human": "user", "gpt": "assistant"}
NAMED = 5  # as many culprits as an error message names


def load_llava_json(path: Path, image_root: Path, *, limit: int | None = None) -> list[Sample]:
    """Read a data set, without neighbours; `limit` keeps the first samples only.

    Raises:
        UserError: no such file, records of another shape, duplicate ids, paths outside of `image_root`, or missing
            pictures.
    """
    records = _read_records(path)[:limit]
    _check_ids(records, path)
    images = [record["image"] for record in records if record.get("image")]
    _check_inside(images, path)
    _check_present(images, image_root)
    return [_to_sample(record, image_root, path) for record in records]


def with_neighbours(samples: Sequence[Sample], path: Path, *, used: int = 1) -> list[Sample]:
    """The samples with the first `used` neighbours of each, from the columns `id` and `texts` of a neighbours.parquet.

    Raises:
        UserError: no such file, or samples with a picture that it does not know.
    """
    texts = _read_neighbours(path, used)
    with_image = [sample for sample in samples if sample.images]
    unknown = [sample.id for sample in with_image if sample.id not in texts]
    if unknown:
        problem = f"{len(unknown)} of {len(with_image)} samples with a picture are not in the neighbours file {path}"
        remedy = "join this data set to the index again: tga-build-index neighbours=DATA.json, or data.neighbours=null"
        raise UserError(problem, given=unknown[:NAMED], remedy=remedy)
    return [dataclasses.replace(sample, neighbours=texts.get(sample.id, ())) for sample in samples]


def _read_records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("There is no data file here", given=path, remedy="data.json=PATH") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The data file is not JSON ({error})", given=path, remedy="data.json=PATH") from error
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UserError(
            "The data file is not a list of records", given=path, allowed="LLaVA's JSON", remedy="data.json=PATH"
        )
    return records


def _check_ids(records: list[dict[str, Any]], path: Path) -> None:
    without = [index for index, record in enumerate(records) if not str(record.get("id", ""))]
    if without:
        problem = f"{len(without)} records of {path} have no id"
        raise UserError(problem, given=f"records {without[:NAMED]}", remedy="give each record an id of its own")
    counts = Counter(str(record["id"]) for record in records)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        problem = f"{len(twice)} ids of {path} belong to more than one record"
        raise UserError(problem, given=twice[:NAMED], remedy="make the ids unique: neighbours and errors go by them")


def _check_inside(images: Iterable[str], path: Path) -> None:
    outside = [name for name in images if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        problem = f"{len(outside)} pictures of {path} lie outside of the image root"
        allowed = "paths relative to data.image_root, without '..'"
        raise UserError(problem, given=outside[:NAMED], allowed=allowed, remedy="data.image_root=PATH further up")


def _check_present(images: Iterable[str], image_root: Path) -> None:
    """One directory listing per folder: half a million single look-ups take minutes on a network disk."""
    listings: dict[str, set[str]] = {}
    missing = []
    for name in images:
        folder, file = os.path.split(os.path.join(image_root, name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if file not in listings[folder]:
            missing.append(name)
    if missing:
        problem = f"{len(missing)} pictures are missing under {image_root}"
        raise UserError(problem, given=missing[:NAMED], remedy="data.image_root=PATH, or remove their records")


def _read_neighbours(path: Path, used: int) -> dict[str, tuple[str, ...]]:
    """Texts by sample id, the first `used` of each."""
    try:
        table = pq.read_table(path, columns=["id", "texts"])
    except FileNotFoundError as error:
        remedy = "tga-build-index neighbours=DATA.json makes it; data.neighbours=null trains without"
        raise UserError("There is no neighbours file here", given=path, remedy=remedy) from error
    texts = table.column("texts").to_pylist()
    return {key: tuple(row[:used]) for key, row in zip(table.column("id").to_pylist(), texts, strict=True)}


def _to_sample(record: dict[str, Any], image_root: Path, path: Path) -> Sample:
    turns = _to_turns(record, path)
    caption = record.get("caption")
    if caption is None and len(turns) == 2:
        caption = turns[1].text
    images = (Path(image_root) / record["image"],) if record.get("image") else ()
    return Sample(str(record["id"]), images, turns, caption if images else None)


def _to_turns(record: dict[str, Any], path: Path) -> tuple[Turn, ...]:
    """User and assistant in turn, without the image marker.

    Raises:
        UserError: other keys or roles, a conversation that does not alternate from the user to the assistant, or an
            image marker too many or too few.
    """

    def fail(why: str) -> UserError:
        return UserError(
            f"A record of {path} {why}", given=f"id {record['id']}", remedy="mend the record, or remove it"
        )

    try:
        turns = [Turn(ROLES[entry["from"]], entry["value"]) for entry in record["conversations"]]
    except (KeyError, TypeError) as error:
        raise fail("is not of the form {id, image, conversations: [{from: human | gpt, value}]}") from error
    if not turns or len(turns) % 2 or any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
        raise fail("does not alternate between human and gpt, beginning with human")
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in turns)
    if markers > 1 or (markers == 1 and not record.get("image")):
        raise fail(
            f"has {markers} image markers and {int(bool(record.get('image')))} pictures; at most one of each is read"
        )
    return tuple(Turn(turn.role, turn.text.replace(IMAGE_MARKER, "").strip()) for turn in turns)
