"""FAISS is imported here and nowhere else, and only when it is used."""

from __future__ import annotations

import functools
import logging
from importlib import metadata, util
from typing import Any

from retrieval_index.errors import RetrievalError


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
    if not has_faiss():
        raise RetrievalError("FAISS is not installed", remedy="pip install faiss-cpu")


def has_faiss() -> bool:
    """Whether FAISS is installed."""
    return util.find_spec("faiss") is not None


def faiss_threads() -> int:
    """How many threads FAISS uses."""
    return int(import_faiss().omp_get_max_threads())


@functools.cache
def import_faiss() -> Any:
    """FAISS, where one build of it is installed (looked for once); it would log which instruction sets it tried."""
    check_faiss()
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss
