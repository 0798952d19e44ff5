"""From the group `data` of a config to a source and its samples."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tga.data.llava_json import LlavaJson
from tga.data.loading import load_samples
from tga.data.packed import PackedSamples
from tga.data.record import Source
from tga.data.table import Tables
from tga.data.webdataset import WebDataset
from tga.errors import UserError
from tga.terminal import say

FORMATS = ("llava_json", "webdataset", "parquet")


def source_of(data: Mapping[str, Any]) -> Source:
    """The data set that the group names.

    Raises:
        UserError: an unknown format.
    """
    if data["format"] == "llava_json":
        return LlavaJson(Path(data["json"]), Path(data["image_root"]))
    if data["format"] == "webdataset":
        return WebDataset(_several(data["shards"]))
    if data["format"] == "parquet":
        root = Path(data["image_root"]) if data["image_root"] is not None else None
        return Tables(_several(data["files"]), data["columns"], root)
    allowed = ", ".join(FORMATS)
    raise UserError(
        "Unknown format of the data", given=data["format"], allowed=allowed, remedy="data=NAME of the group"
    )


def read_samples(data: Mapping[str, Any]) -> PackedSamples:
    """The samples without what the bad list names; how many those are is said on stderr."""
    loaded = load_samples(
        source_of(data),
        limit=data["limit"],
        bad_list=Path(data["bad_list"]) if data["bad_list"] is not None else None,
        max_bad_fraction=data["max_bad_fraction"],
        duplicate_ids=data["duplicate_ids"],
    )
    if loaded.skipped:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(loaded.skipped.items()))
        say(f"Left out by data.bad_list: {sum(loaded.skipped.values())} records ({counts})", file=sys.stderr)
    return loaded.samples


def _several(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
