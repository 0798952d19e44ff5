"""Opening a FAISS file memory-mapped, and placing it on GPUs where FAISS has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import import_faiss
from retrieval_index.manifest import REPLAN
from retrieval_index.planner import GPU_CODE_BYTES

SPREADS = ("replicate", "shard")
GPU_LARGEST = 2048  # neighbours, and lists looked into


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
        raise RetrievalError("The FAISS index cannot be read", given=path, remedy=REPLAN) from error
    if (index.ntotal, index.d) != (rows, width):
        raise RetrievalError(
            "The FAISS index is not what the manifest says",
            given=f"{path}: {index.ntotal} rows of width {index.d}",
            allowed=f"{rows} rows of width {width}",
            remedy=REPLAN,
        )
    return index


def faiss_gpus() -> int:
    """GPUs that FAISS sees; 0 for its CPU build."""
    faiss = import_faiss()
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def check_spread(spread: str) -> None:
    """Raise RetrievalError for an unknown way to use several GPUs."""
    if spread not in SPREADS:
        raise RetrievalError(
            "Unknown way to use several GPUs", given=spread, allowed=", ".join(SPREADS), remedy="index.gpus=replicate"
        )


def gpu_obstacle(plan: Mapping[str, Any], search: Mapping[str, int]) -> str | None:
    """What keeps an index of a plan, asked with some search parameters, from a GPU; None: nothing."""
    if plan["kind"] == "hnsw":
        return "an HNSW index"
    if plan["kind"] == "ivf_pq" and plan["code_bytes"] not in GPU_CODE_BYTES:
        return f"product codes of {plan['code_bytes']} bytes"
    if search.get("nprobe", 0) > GPU_LARGEST:
        return f"an index that reaches its recall with nprobe {search['nprobe']}"
    return None


def check_gpu(plan: Mapping[str, Any], search: Mapping[str, int]) -> None:
    """Raise RetrievalError where FAISS sees no GPU, or has no form of such an index for it."""
    obstacle = gpu_obstacle(plan, search)
    if not faiss_gpus() or obstacle is not None:
        sizes = ", ".join(map(str, GPU_CODE_BYTES))
        raise _not_on_a_gpu(
            obstacle or f"FAISS {import_faiss().__version__} that sees no GPU",
            f"faiss-gpu, flat and IVF indexes, nprobe up to {GPU_LARGEST}, product codes of {sizes} bytes",
        )


def place_on_gpus(index: Any, spread: str) -> Any:
    """A copy of the index on all GPUs that FAISS sees, vectors in half precision.

    Raises:
        RetrievalError: an unknown way to spread, or an index that does not fit there.
    """
    faiss = import_faiss()
    check_spread(spread)
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = spread == "shard"
    options.allowCpuCoarseQuantizer = True  # a graph over the centroids, where they are many, has no GPU form
    try:
        return faiss.index_cpu_to_all_gpus(index, co=options)
    except RuntimeError as error:
        raise _not_on_a_gpu(" ".join(str(error).split())[-300:], "what FAISS can place there, and what fits") from error


def _not_on_a_gpu(given: str, allowed: str) -> RetrievalError:
    return RetrievalError(
        "This index cannot be searched on a GPU",
        given=given,
        allowed=allowed,
        remedy="index.search_device=cpu, or index.gpus=shard to lay a part on each GPU",
    )
