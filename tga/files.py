"""Outputs that are either complete or absent, and what may take the place of what: see `retrieval_index`.

The caption index works without `tga` and writes as carefully; so what both do with files stands there, once. A full
disk, a place that cannot be written or that another process holds is a `RetrievalError`.
"""

from retrieval_index.errors import RetrievalError
from retrieval_index.files import (
    TEMPORARY,
    atomic_path,
    file_sha256,
    give_modes,
    remove_unfinished,
    temporary_prefix,
    write_json,
)
from retrieval_index.locks import LOCK, lock_within, locked
from retrieval_index.ownership import (
    atomic_directory,
    entries,
    listed,
    marked_files,
    read_object,
    reason_to_keep,
    remove_ours,
)

__all__ = [
    "LOCK",
    "TEMPORARY",
    "RetrievalError",
    "atomic_directory",
    "atomic_path",
    "entries",
    "file_sha256",
    "give_modes",
    "listed",
    "lock_within",
    "locked",
    "marked_files",
    "read_object",
    "reason_to_keep",
    "remove_ours",
    "remove_unfinished",
    "temporary_prefix",
    "write_json",
]
