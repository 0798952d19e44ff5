"""Where the encoded bytes of a picture are: a file of its own, a member of a tar archive, or a cell of a table.

A picture is a small value that travels to data workers; its bytes are read where they are needed. Every kind can be
read at random, so which worker or process takes which sample is free.
"""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from retrieval_index.picture_files import open_regular, read_rgb, reason
from tga.errors import UserError


@dataclass(frozen=True)
class ArchivedPicture:
    """`size` bytes from byte `offset` of an uncompressed tar archive; `name` is the member's."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


@dataclass(frozen=True)
class TablePicture:
    """The bytes in one cell of a Parquet file or an Arrow file of Hugging Face's `save_to_disk`.

    `row` counts within the file; `index` is the place in a cell that is a list of pictures, None for a single one.
    """

    file: str
    column: str
    row: int
    index: int | None = None

    def __str__(self) -> str:
        return f"{self.file} row {self.row} column {self.column}"


@dataclass(frozen=True)
class GreyPicture:
    """No picture of a data set, but a grey one of `side` x `side` pixels: where one has to be and says nothing."""

    side: int = 64


Picture = Path | ArchivedPicture | TablePicture | GreyPicture


def read_bytes(picture: Picture) -> bytes:
    """The encoded picture.

    Raises:
        OSError: it cannot be read, or the archive ends before it.
    """
    if isinstance(picture, ArchivedPicture):
        with open(picture.archive, "rb") as file:
            data = os.pread(file.fileno(), picture.size, picture.offset)
        if len(data) != picture.size:
            raise OSError(f"the archive ends within {picture.name}")
        return data
    if isinstance(picture, TablePicture):
        cell = _cell(picture)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise OSError("the cell holds no bytes")
        return content
    if isinstance(picture, GreyPicture):
        buffer = io.BytesIO()
        Image.new("RGB", (picture.side, picture.side), "grey").save(buffer, "PNG")
        return buffer.getvalue()
    with open_regular(picture) as opened:
        return opened.read()


def encoded(picture: Picture) -> Path | io.BytesIO:
    """What `retrieval_index.picture_files` opens: the file itself, or the bytes from an archive or a table."""
    return picture if isinstance(picture, Path) else io.BytesIO(read_bytes(picture))


def open_picture(picture: Picture) -> Image.Image:
    """The picture in RGB.

    Raises:
        OSError, ValueError, Image.DecompressionBombError: it cannot be read, or is no picture, or a far too large one.
    """
    return read_rgb(encoded(picture))


def identity(picture: Picture) -> str:
    """What a fingerprint of a data set takes of a picture: its name and its size (or place), wherever the data lies.

    A file that is not there has no size; who opens it says so.
    """
    if isinstance(picture, ArchivedPicture):
        return f"{Path(picture.archive).name}:{picture.name}:{picture.size}"
    if isinstance(picture, TablePicture):
        return f"{Path(picture.file).name}:{picture.column}:{picture.row}:{picture.index}"
    if isinstance(picture, GreyPicture):
        return str(picture)
    try:
        return f"{picture.name}:{picture.stat().st_size}"
    except OSError:
        return f"{picture.name}:"


def load_picture(picture: Picture, sample_id: str) -> Image.Image:
    """:func:`open_picture` for a training batch.

    Raises:
        UserError: it cannot be opened; the message names the sample.
    """
    try:
        return open_picture(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        remedy = "replace the file, or list it: tga-verify-data writes what data.bad_list=PATH leaves out"
        raise UserError(
            f"A picture cannot be read ({reason(error)})", given=f"{picture} of sample {sample_id}", remedy=remedy
        ) from error


def _cell(picture: TablePicture) -> Any:
    if picture.file.endswith(".parquet"):
        groups = _row_groups(picture.file)
        group = max(number for number, start in enumerate(groups) if start <= picture.row)
        column, row = _parquet_column(picture.file, group, picture.column), picture.row - groups[group]
    else:
        column, row = arrow_table(picture.file).column(picture.column), picture.row
    value = column[row].as_py()
    return value if picture.index is None else value[picture.index]


def arrow_table(file: str) -> pa.Table:
    """An Arrow file (stream or file format), memory-mapped: nothing is read before a cell is asked for."""
    return _arrow_table(file, os.stat(file).st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _arrow_table(file: str, _changed: int) -> pa.Table:
    source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


@functools.lru_cache(maxsize=4096)
def _row_groups(file: str) -> tuple[int, ...]:
    """The first row of each row group."""
    metadata = pq.read_metadata(file)
    starts = [0]
    for group in range(metadata.num_row_groups - 1):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


@functools.lru_cache(maxsize=2)
def _parquet_column(file: str, group: int, column: str) -> pa.ChunkedArray:
    """One column of one row group; the last two stay, for pictures that stand beside each other."""
    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(column)
