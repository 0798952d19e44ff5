"""Opening FAISS files, and what there is to say without a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_index import faiss_open
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_files import write_flat
from retrieval_index.faiss_open import check_gpu, faiss_gpus, gpu_obstacle, open_faiss, place_on_gpus


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
        check_gpu({"kind": "flat"}, {})
    with pytest.raises(RetrievalError, match="Given: both. Allowed: replicate, shard"):
        place_on_gpus(faiss.IndexFlatIP(4), "both")


@pytest.mark.parametrize(
    ("plan", "search", "obstacle"),
    [
        ({"kind": "flat"}, {}, None),
        ({"kind": "hnsw"}, {"ef_search": 10}, "an HNSW index"),
        ({"kind": "ivf_sq8"}, {"nprobe": 2048, "refine": 2}, None),
        ({"kind": "ivf_flat"}, {"nprobe": 2049}, "reaches its recall with nprobe 2049"),
        ({"kind": "ivf_pq", "code_bytes": 96}, {"nprobe": 8}, None),
        ({"kind": "ivf_pq", "code_bytes": 192}, {"nprobe": 8}, "product codes of 192 bytes"),
    ],
)
def test_what_keeps_an_index_from_a_gpu(
    plan: dict[str, Any], search: dict[str, int], obstacle: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_open, "faiss_gpus", lambda: 1)
    found = gpu_obstacle(plan, search)
    assert found is None if obstacle is None else obstacle in str(found)
    if obstacle is None:
        check_gpu(plan, search)
    else:
        with pytest.raises(
            RetrievalError, match=f"cannot be searched on a GPU. Given: .*{obstacle}.*search_device=cpu"
        ):
            check_gpu(plan, search)


def test_an_index_that_a_gpu_refuses_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: faiss.Index, co: SimpleNamespace) -> None:
        assert co.useFloat16 and co.shard and co.allowCpuCoarseQuantizer
        raise RuntimeError("Error in GpuResources: out of memory")

    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", refuse, raising=False)
    with pytest.raises(RetrievalError, match="cannot be searched on a GPU. Given: .*out of memory.*index.gpus=shard"):
        place_on_gpus(faiss.IndexFlatIP(4), "shard")


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
