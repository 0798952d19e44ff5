"""Parquet files, and data sets that Hugging Face's `save_to_disk` wrote, with pictures as bytes or as paths.

A picture's column holds bytes, a path relative to the image folder, Hugging Face's {bytes, path}, or a list of these.
Conversations are lists of {from, value} or {role, content}; without them the caption is all that a record says. The
bytes stay in the files and are read where a sample is needed: Arrow files are mapped into memory, of Parquet the row
group is read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tga.data.picture import Picture, TablePicture, arrow_table
from tga.data.record import MALFORMED, MISSING, Problem, Record, inside
from tga.data.webdataset import matching
from tga.errors import UserError

COLUMNS = ("id", "image", "conversations", "caption")
MAX_ROW_GROUP = 256 << 20  # bytes of a picture column that one picture may cost to read
REMEDY = "data.files=PATH/*.parquet, or a directory of save_to_disk"
BATCH = 256


@dataclass(frozen=True)
class Tables:
    """The rows of Parquet or Arrow files, a `tga.data.record.Source`.

    Attributes:
        files: paths or patterns of Parquet files, or directories that `save_to_disk` wrote.
        columns: what a sample is made of ("id", "image", "conversations", "caption") -> the name of its column, or
            None; without an id the row's number is taken.
        image_root: what paths of pictures are relative to.
    """

    files: tuple[str, ...]
    columns: Mapping[str, str | None]
    image_root: Path | None = None
    remedy: str = field(default=REMEDY, init=False)

    @property
    def name(self) -> str:
        """The patterns."""
        return ", ".join(self.files)

    def records(self, limit: int | None = None) -> Iterator[Record]:
        """The rows in the order of the files.

        Raises:
            UserError: no such file, one that is no table, columns that are not there, or row groups so large that
                no picture can be read on its own.
        """
        if unknown := sorted(set(self.columns) - set(COLUMNS)):
            raise UserError(
                "Unknown parts of a sample", given=unknown, allowed=", ".join(COLUMNS), remedy="data.columns.id=NAME"
            )
        number = 0
        for file in self._files():
            for row, cells in enumerate(self._rows(file)):
                if limit is not None and number >= limit:
                    return
                yield self._record(number, file, row, cells)
                number += 1

    def _files(self) -> list[str]:
        found = []
        for name in matching(self.files, REMEDY):
            found.extend(_saved(Path(name)) if Path(name).is_dir() else [name])
        return found

    def _rows(self, file: str) -> Iterator[dict[str, Any]]:
        """The cells of each row by the part of a sample; of pictures only whether there are any, and their paths."""
        named = {part: column for part, column in self.columns.items() if column is not None}
        for table in _tables(file, named):
            for row in table.to_pylist():
                yield {part: row[part] for part in named}

    def _record(self, number: int, file: str, row: int, cells: Mapping[str, Any]) -> Record:
        images, problem = self._images(file, row, cells.get("image"))
        conversations, caption = cells.get("conversations"), cells.get("caption")
        if conversations is None and caption is None:
            problem = problem or Problem(MALFORMED, "has neither conversations nor a caption")
        identifier = cells.get("id", number)
        return Record(number, "" if identifier is None else str(identifier), images, conversations, caption, problem)

    def _images(self, file: str, row: int, cell: Any) -> tuple[tuple[Picture, ...], Problem | None]:
        column = self.columns.get("image")
        if cell is None or column is None:
            return (), None
        several = isinstance(cell, list)
        images: list[Picture] = []
        for index, one in enumerate(cell if several else [cell]):
            if one.get("has_bytes"):
                images.append(TablePicture(file, column, row, index if several else None))
                continue
            path = one.get("path")
            found = inside(path, self.image_root) if path and self.image_root is not None else None
            if isinstance(found, Problem):
                return (), found
            if found is None or not found.is_file():
                return (), Problem(MISSING, str(found or path or "a cell without bytes, path or data.image_root"))
            images.append(found)
        return tuple(images), None


def _saved(directory: Path) -> list[str]:
    """The Arrow files of a directory that `save_to_disk` wrote."""
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        return [str(directory / entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"This directory is no data set of save_to_disk ({error!r})",
            given=directory,
            allowed="a directory with state.json; of several splits one of them",
            remedy=REMEDY,
        ) from error


def _tables(file: str, named: Mapping[str, str]) -> Iterator[pa.Table]:
    """Tables whose columns are the parts of a sample, and whose picture column holds {has_bytes, path}."""
    try:
        if file.endswith(".parquet"):
            with pq.ParquetFile(file) as opened:
                _check_columns(file, opened.schema_arrow, named)
                if "image" in named:
                    _check_row_groups(file, opened, named["image"])
                for group in range(opened.metadata.num_row_groups):
                    yield _row_group(opened, group, named)
        else:
            table = arrow_table(file)
            _check_columns(file, table.schema, named)
            for start in range(0, len(table), BATCH):
                yield _parts(table.slice(start, BATCH), named)
    except FileNotFoundError as error:
        raise UserError("There is no such file", given=file, remedy=REMEDY) from error
    except pa.ArrowException as error:
        raise UserError(f"This file is no table ({error})", given=file, remedy=REMEDY) from error


def _check_columns(file: str, schema: pa.Schema, named: Mapping[str, str]) -> None:
    if lacking := {part: column for part, column in named.items() if column not in schema.names}:
        raise UserError(
            "The table lacks columns",
            given=f"{', '.join(f'{column} (for {part})' for part, column in lacking.items())} in {file}",
            allowed=", ".join(schema.names),
            remedy="data.columns.image=NAME, or data.columns.image=null for a part that there is not",
        )


def _check_row_groups(file: str, opened: pq.ParquetFile, column: str) -> None:
    """Every picture costs its whole row group: a gigabyte of it would be read for each."""
    for number in range(opened.metadata.num_row_groups):
        group = opened.metadata.row_group(number)
        columns = (group.column(i) for i in range(group.num_columns))
        size = sum(part.total_uncompressed_size for part in columns if part.path_in_schema.split(".")[0] == column)
        if size > MAX_ROW_GROUP:
            raise UserError(
                f"Row groups of this file hold up to {size >> 20} MiB of pictures, all read for each picture",
                given=file,
                allowed=f"{MAX_ROW_GROUP >> 20} MiB",
                remedy="write it again with a row_group_size of 100 (pyarrow), or save_to_disk, and data.files=PATH",
            )


def _parts(table: pa.Table, named: Mapping[str, str]) -> pa.Table:
    columns = {part: _whole(table.column(column)) for part, column in named.items()}
    if "image" in columns:
        columns["image"] = _without_bytes(columns["image"])
    return pa.table(columns)


def _row_group(opened: pq.ParquetFile, group: int, named: Mapping[str, str]) -> pa.Table:
    """One row group as :func:`_parts`; the pictures' bytes are not read where the file's own counts say enough."""
    image = named.get("image")
    found = None if image is None else _counted(opened, group, image)
    if image is None or found is None:
        return _parts(opened.read_row_group(group, columns=list(dict.fromkeys(named.values()))), named)
    others = {part: column for part, column in named.items() if part != "image"}
    table = opened.read_row_group(group, columns=list(dict.fromkeys(others.values())))
    return pa.table({"image": found, **{part: table.column(column) for part, column in others.items()}})


def _counted(opened: pq.ParquetFile, group: int, column: str) -> pa.Array | None:
    """{has_bytes, path} of a picture column, known without its bytes: all pictures of the group have them, or none."""
    kind = opened.schema_arrow.field(column).type
    metadata = opened.metadata.row_group(group)
    parts = {part.path_in_schema: part for i in range(metadata.num_columns) if (part := metadata.column(i))}
    counted = parts.get(f"{column}.bytes", parts.get(column))
    if counted is None or counted.statistics is None or not counted.statistics.has_null_count:
        return None
    nulls, rows = counted.statistics.null_count, metadata.num_rows
    if pa.types.is_struct(kind) and f"{column}.path" in parts:
        named = _whole(opened.read_row_group(group, columns=[f"{column}.path"]).column(column))
        if nulls not in (named.null_count, rows):
            return None
        has = named.is_valid() if nulls == named.null_count else _all(False, rows)
        return pa.StructArray.from_arrays([has, named.field("path")], ["has_bytes", "path"], mask=named.is_null())
    if (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and nulls == 0:
        return pa.StructArray.from_arrays([_all(True, rows), pa.nulls(rows, pa.string())], ["has_bytes", "path"])
    return None


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    chunks = column.chunks or [pa.array([], column.type)]
    return pa.concat_arrays(chunks) if len(chunks) > 1 else chunks[0]


def _without_bytes(column: pa.Array) -> pa.Array:
    """The picture column with {has_bytes, path} for each picture: the bytes themselves are not copied."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _without_bytes(column.flatten())
        lengths = (n or 0 for n in column.value_lengths().to_pylist())
        offsets = pa.array([0, *itertools.accumulate(lengths)], pa.int32())
        return pa.ListArray.from_arrays(offsets, inner, mask=column.is_null())
    if pa.types.is_struct(kind):
        has = column.field("bytes").is_valid() if kind.get_field_index("bytes") >= 0 else _all(False, len(column))
        path = column.field("path") if kind.get_field_index("path") >= 0 else pa.nulls(len(column), pa.string())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        has, path = _all(False, len(column)), column
    else:
        has, path = column.is_valid(), pa.nulls(len(column), pa.string())
    return pa.StructArray.from_arrays([has, path], ["has_bytes", "path"], mask=column.is_null())


def _all(value: bool, length: int) -> pa.Array:
    return pa.array([value] * length, pa.bool_())
