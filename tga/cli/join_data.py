"""The data set that is joined to a caption index, read as its suffix says: tar archives, tables, or LLaVA's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tga.cli.data import source_of
from tga.data.loading import load_samples
from tga.data.sample import Sample
from tga.errors import UserError

REMEDY = (
    "neighbours=DATA image_root=FOLDER neighbours_columns.image=COLUMN, or leave bad records out: tga-verify-data "
    "lists them for neighbours_bad_list=PATH"
)


def read_joined(
    data: str | Sequence[str], image_root: str | None, columns: Mapping[str, str | None], bad_list: str | None
) -> Sequence[Sample]:
    """The samples of a data set.

    Args:
        data: a path or pattern, or several: `.tar` (WebDataset), `.parquet` or a directory of `save_to_disk`, else a
            LLaVA JSON.
        image_root: where pictures lie that are named by a path; None: the folder of the JSON.
        columns: of tables, as in the group `data`.
        bad_list: records to leave out, as `tga-verify-data` lists them.

    Raises:
        UserError: data that cannot be read, or pictures that are missing.
    """
    files = [data] if isinstance(data, str) else list(data)
    try:
        return load_samples(
            source_of(_group(files, image_root, columns)),
            bad_list=Path(bad_list) if bad_list is not None else None,
            max_bad_fraction=1.0,
        ).samples
    except UserError as error:
        raise UserError(error.problem, given=error.given, allowed=error.allowed, remedy=REMEDY) from error


def _group(files: Sequence[str], image_root: str | None, columns: Mapping[str, str | None]) -> dict[str, object]:
    """The group `data` of a config that names these files."""
    kinds = {".tar" if Path(file).suffix == ".tar" else _table_or_json(Path(file)) for file in files}
    if len(kinds) != 1 or (kinds == {".json"} and len(files) > 1):
        allowed = "archives (.tar), or tables (.parquet, directories of save_to_disk), or one LLaVA JSON"
        raise UserError("A data set is of one format", given=", ".join(files), allowed=allowed, remedy=REMEDY)
    if kinds == {".tar"}:
        return {"format": "webdataset", "shards": files}
    if kinds == {".parquet"}:
        return {"format": "parquet", "files": files, "columns": columns, "image_root": image_root}
    root = image_root if image_root is not None else str(Path(files[0]).parent)
    return {"format": "llava_json", "json": files[0], "image_root": root}


def _table_or_json(file: Path) -> str:
    return ".parquet" if file.suffix == ".parquet" or file.is_dir() else ".json"
