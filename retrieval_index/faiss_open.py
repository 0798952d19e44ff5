"""Opening a FAISS file memory-mapped, and placing it on GPUs where FAISS has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import import_faiss
from retrieval_index.manifest import REBUILD

SPREADS = ("replicate", "shard")


def open_faiss(file: BinaryIO, path: Path, rows: int, width: int) -> Any:
    """Map an opened index file.

    Args:
        file: opened; its name may be gone.
        path: its name, for messages.
        rows, width: what it must hold.

    Raises:
        RetrievalError: a file that is damaged, or of another size than `rows` x `width`.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(f"/dev/fd/{file.fileno()}", faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise RetrievalError("The FAISS index cannot be read", given=path, remedy=REBUILD) from error
    if (index.ntotal, index.d) != (rows, width):
        raise RetrievalError(
            "The FAISS index is not what the manifest says",
            given=f"{path}: {index.ntotal} rows of width {index.d}",
            allowed=f"{rows} rows of width {width}",
            remedy=REBUILD,
        )
    return index


def faiss_gpus() -> int:
    """GPUs that FAISS sees; 0 for its CPU build."""
    faiss = import_faiss()
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def place_on_gpus(index: Any, spread: str) -> Any:
    """A copy of the index on all GPUs that FAISS sees, vectors in half precision.

    Raises:
        RetrievalError: an unknown way to spread, a build of FAISS without GPUs, or a graph, which has no GPU form.
    """
    faiss = import_faiss()
    if spread not in SPREADS:
        raise RetrievalError(
            "Unknown way to use several GPUs", given=spread, allowed=", ".join(SPREADS), remedy="index.gpus=replicate"
        )
    gpus = faiss_gpus()
    if not gpus or isinstance(index, faiss.IndexHNSW):
        raise RetrievalError(
            "This index cannot be searched on a GPU",
            given="an HNSW index" if gpus else f"FAISS {faiss.__version__} that sees no GPU",
            allowed="flat and IVF indexes, with faiss-gpu",
            remedy="index.search_device=cpu",
        )
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = spread == "shard"
    return faiss.index_cpu_to_all_gpus(index, co=options)
