"""The flat inner-product index of FAISS: written once, memory-mapped when read.

FAISS is imported here and nowhere else, and only when it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.errors import RetrievalError
from retrieval_index.store import replacing


def check_faiss() -> None:
    """Refuse an environment where the CPU and the GPU build of FAISS overwrite each other's files.

    Raises:
        RetrievalError: both are installed, or none is.
    """
    installed = sorted(
        {
            name.lower().replace("_", "-")
            for distribution in metadata.distributions()
            if (name := distribution.metadata["Name"]) and name.lower().replace("_", "-").startswith("faiss-")
        }
    )
    gpu = [name for name in installed if name.startswith("faiss-gpu")]
    if "faiss-cpu" in installed and gpu:
        raise RetrievalError(
            "Two builds of FAISS are installed and overwrite each other's files",
            given=", ".join(installed),
            allowed="one of them",
            remedy=f"pip uninstall -y {' '.join(['faiss-cpu', *gpu])} && pip install faiss-cpu",
        )
    if util.find_spec("faiss") is None:
        raise RetrievalError("FAISS is not installed", remedy="pip install faiss-cpu")


def _import_faiss() -> Any:
    """FAISS, where one build of it is installed; it would log which instruction sets it tried."""
    check_faiss()
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


def write_flat(path: Path, shards: Iterable[np.ndarray], width: int) -> None:
    """Write the index over all rows of `shards` `[rows, width]`, in their order."""
    faiss = _import_faiss()
    index = faiss.IndexFlatIP(width)
    for shard in shards:
        index.add(np.ascontiguousarray(shard, dtype=np.float32))
    with replacing(path) as temporary:
        faiss.write_index(index, str(temporary))


def open_flat(path: Path, rows: int, width: int) -> Any:
    """Open the index memory-mapped.

    Raises:
        RetrievalError: a file that is missing, damaged, or of another size than `rows` x `width`.
    """
    faiss = _import_faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise RetrievalError("The FAISS index cannot be read", given=path, remedy="build the index again") from error
    if (index.ntotal, index.d) != (rows, width):
        raise RetrievalError(
            "The FAISS index is not what the manifest says",
            given=f"{path}: {index.ntotal} rows of width {index.d}",
            allowed=f"{rows} rows of width {width}",
            remedy="build the index again",
        )
    return index
