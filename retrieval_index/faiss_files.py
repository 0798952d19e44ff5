"""FAISS index files written as a stream: flat indexes, and inverted lists merged from several files.

FAISS writes an index from memory only. A flat file is a head and the vectors; an inverted-file index is a head (coarse
quantiser, codec) and, for every list, its codes and its ids. Both can be written from blocks with the head that FAISS
makes of the empty index, so that no more than one block (or one list) is ever in memory. What comes out is an ordinary
FAISS file: `faiss.read_index` reads it, memory-mapped if asked.

The format: https://github.com/facebookresearch/faiss/blob/main/faiss/impl/index_write.cpp. A version of FAISS that
writes another one is noticed, as the head of its empty index does not end as expected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import import_faiss
from retrieval_index.files import atomic_path, disk_full

ROWS_AT = 8  # after the four letters of the type and the width
ID_BYTES = 8


@dataclass(frozen=True)
class Lists:
    """Where the inverted lists of a file begin: byte `offset`; bytes per code; the size of each list `[lists]`."""

    offset: int
    code_bytes: int
    sizes: np.ndarray


def write_flat(path: Path, blocks: Iterable[np.ndarray], rows: int, width: int) -> None:
    """Write a flat inner-product index over `blocks` `[rows, width]`, in their order."""
    faiss = import_faiss()
    head = bytes(faiss.serialize_index(faiss.IndexFlatIP(width)))
    if not head.startswith(b"IxFI") or not head.endswith(struct.pack("<Q", 0)):
        raise _other_format()
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(_with_rows(head[:-8], rows) + struct.pack("<Q", rows * width))
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype=np.float32).data)


def write_index(index: Any, path: Path) -> None:
    """Write an index that is in memory."""
    faiss = import_faiss()
    with atomic_path(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:
            if "No space left" in str(error):
                raise disk_full(path) from error
            raise


def write_lists(path: Path, empty: Any, lists: np.ndarray, codes: np.ndarray, first_id: int) -> None:
    """Write the inverted-file index of some rows, numbered from `first_id`, which stay in their order in every list.

    Args:
        path: of the result.
        empty: the trained index without rows.
        lists: of each row, `[rows]` int64.
        codes: of each row, `[rows, code bytes]` uint8.
        first_id: of the first row.
    """
    sizes = np.bincount(lists, minlength=empty.nlist)
    order = np.argsort(lists, kind="stable")
    with atomic_path(path) as temporary, open(temporary, "wb", buffering=1 << 20) as stream:
        _write_list_head(stream, _list_head(empty), sizes, codes.shape[1])
        for rows in np.split(order, np.cumsum(sizes)[:-1]):
            stream.write(codes[rows].data)
            stream.write((rows + first_id).astype("<i8").data)


def merge_lists(path: Path, empty: Any, parts: Sequence[Path]) -> None:
    """Write the inverted-file index that holds the lists of all parts, each list in the order of the parts.

    Args:
        path: of the result.
        empty: the trained index without rows from which every part was made.
        parts: index files with ids that are unique among them.
    """
    head = _list_head(empty)
    lists = [read_lists(part, len(head)) for part in parts]
    sizes = np.stack([part.sizes for part in lists]).sum(axis=0, dtype=np.uint64)
    code_bytes = lists[0].code_bytes
    with atomic_path(path) as temporary, open(temporary, "wb", buffering=1 << 20) as stream:
        _write_list_head(stream, head, sizes, code_bytes)
        # Each part is read from its beginning to its end: the lists lie in the same order everywhere.
        sources = [open(part, "rb", buffering=1 << 20) for part in parts]
        try:
            for source, part in zip(sources, lists, strict=True):
                source.seek(part.offset)
            for number in range(len(sizes)):
                counts = [int(part.sizes[number]) for part in lists]
                _copy_list(sources, counts, code_bytes, stream)
        finally:
            for source in sources:
                source.close()


def read_lists(path: Path, head_bytes: int) -> Lists:
    """Where the lists of an index file lie that begins with a head of `head_bytes`.

    Raises:
        RetrievalError: a file that is no such index.
    """
    with open(path, "rb") as stream:
        stream.seek(head_bytes)
        letters, count, code_bytes, kind, numbers = struct.unpack("<4sQQ4sQ", stream.read(32))
        if letters != b"ilar" or kind not in (b"full", b"sprs"):
            raise _other_format(path)
        stored = np.fromfile(stream, dtype="<u8", count=numbers)
        sizes = stored
        if kind == b"sprs":  # pairs of list and size
            sizes = np.zeros(count, dtype=np.uint64)
            sizes[stored[0::2].astype(np.int64)] = stored[1::2]
        return Lists(stream.tell(), code_bytes, sizes)


def _list_head(empty: Any) -> bytes:
    """The bytes before the lists."""
    data = bytes(import_faiss().serialize_index(empty))
    tail = struct.pack("<4sQQ4sQ", b"ilar", empty.nlist, empty.code_size, b"sprs", 0)
    if empty.ntotal != 0 or not data.endswith(tail):
        raise _other_format()
    return data[: -len(tail)]


def _write_list_head(stream: BinaryIO, head: bytes, sizes: np.ndarray, code_bytes: int) -> None:
    """All that stands before the lists, whose sizes are `[lists]`."""
    stream.write(_with_rows(head, int(sizes.sum())))
    stream.write(struct.pack("<4sQQ4sQ", b"ilar", len(sizes), code_bytes, b"full", len(sizes)))
    stream.write(sizes.astype("<u8").tobytes())


def _with_rows(head: bytes, rows: int) -> bytes:
    return head[:ROWS_AT] + struct.pack("<q", rows) + head[ROWS_AT + 8 :]


def _copy_list(sources: Sequence[BinaryIO], counts: Sequence[int], code_bytes: int, stream: BinaryIO) -> None:
    """Codes of all parts, then ids of all parts; in each source the ids of a list follow its codes."""
    ids = []
    for source, count in zip(sources, counts, strict=True):
        if count:
            stream.write(_exactly(source, count * code_bytes))
            ids.append(_exactly(source, count * ID_BYTES))
    stream.writelines(ids)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise RetrievalError(
            "A part of the index is cut", given=source.name, remedy="run the same command again with overwrite=true"
        )
    return data


def _other_format(path: Path | None = None) -> RetrievalError:
    faiss = import_faiss()
    given = f"version {faiss.__version__}" + (f", {path}" if path is not None else "")
    return RetrievalError(
        "This version of FAISS writes its files in a form that is not known here",
        given=given,
        remedy="pip install faiss-cpu==1.15.1",
    )
