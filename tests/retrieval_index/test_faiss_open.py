"""Opening FAISS files, and what there is to say without a GPU."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_files import write_flat
from retrieval_index.faiss_open import faiss_gpus, open_faiss, place_on_gpus


def test_opened_by_its_handle_after_its_name_is_gone(tmp_path: Path) -> None:
    path, vectors = tmp_path / "index", np.eye(6, 4, dtype=np.float32)
    write_flat(path, [vectors], 6, 4)
    with open(path, "rb") as file:
        path.unlink()
        index = open_faiss(file, path, 6, 4)
    assert index.search(vectors[2:3], 1)[1].tolist() == [[2]]


def test_another_size_and_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "index"
    write_flat(path, [np.ones((6, 4), np.float32)], 6, 4)
    with open(path, "rb") as file, pytest.raises(RetrievalError, match="6 rows of width 4. Allowed: 7 rows of width 4"):
        open_faiss(file, path, 7, 4)
    path.write_bytes(path.read_bytes()[:-40])
    with open(path, "rb") as file, pytest.raises(RetrievalError, match="cannot be read. Given: .*index"):
        open_faiss(file, path, 6, 4)


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="FAISS has GPUs here")
def test_without_a_gpu() -> None:
    assert faiss_gpus() == 0
    with pytest.raises(RetrievalError, match="sees no GPU. .*index.search_device=cpu"):
        place_on_gpus(faiss.IndexFlatIP(4), "replicate")
    with pytest.raises(RetrievalError, match="Given: both. Allowed: replicate, shard"):
        place_on_gpus(faiss.IndexFlatIP(4), "both")


@pytest.mark.gpu
@pytest.mark.parametrize("spread", ["replicate", "shard"])
def test_a_gpu_finds_what_the_cpu_finds(spread: str) -> None:
    if not faiss_gpus():
        pytest.skip("this build of FAISS has no GPU")
    vectors = np.random.default_rng(0).standard_normal((5000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = faiss.IndexFlatIP(64)
    flat.add(vectors)
    scores, _ = flat.search(vectors[:50], 5)
    found, _ = place_on_gpus(flat, spread).search(vectors[:50], 5)
    np.testing.assert_allclose(found, scores, atol=2e-3)  # half precision
