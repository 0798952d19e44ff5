"""One way to ask an opened FAISS index: its search parameters, and candidates ranked again by their stored
embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import import_faiss
from retrieval_index.faiss_open import GPU_LARGEST

RERANK_QUERIES = 256
Take = Callable[[np.ndarray], np.ndarray]


class Searcher:
    """A FAISS index with the parameters that its recall was measured with.

    Args:
        index: of FAISS, opened.
        parameters: `nprobe`, `ef_search`, `refine` as far as its kind has them.
        take: gives the stored embeddings `[rows, width]` of row numbers `[rows]`, for `refine`.
        gpu: whether `index` lies on GPUs.
    """

    def __init__(self, index: Any, parameters: Mapping[str, int], take: Take, *, gpu: bool = False) -> None:
        self.index, self.parameters, self._take, self._gpu = index, dict(parameters), take, gpu
        if gpu and "nprobe" in parameters:
            import_faiss().GpuParameterSpace().set_index_parameter(index, "nprobe", parameters["nprobe"])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[queries, k]` float32, descending, and rows `[queries, k]` int64 of queries `[queries, width]`.

        Raises:
            RetrievalError: more neighbours than FAISS returns on a GPU, or than the lists it looks into there hold.
        """
        refine = self.parameters.get("refine", 0)
        count = min(max(refine, 1) * k, self.index.ntotal)
        if self._gpu and count > GPU_LARGEST:
            raise RetrievalError(
                f"FAISS on a GPU returns at most {GPU_LARGEST} neighbours",
                given=f"k={k}" + (f", ranked again from {count}" if refine else ""),
                allowed=f"k={GPU_LARGEST // max(refine, 1)}",
                remedy="k=10, or index.search_device=cpu",
            )
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self.index.search(queries, count, params=self._faiss_parameters(self.parameters))
        short = np.flatnonzero(rows[:, -1] < 0) if len(rows) else np.empty(0, dtype=np.int64)
        if len(short) and self._gpu:
            raise RetrievalError(
                "The lists that are looked into on the GPU hold fewer captions than neighbours are asked for",
                given=f"k={k}, nprobe {self.parameters.get('nprobe')}",
                remedy="a smaller k, or index.search_device=cpu, which then looks into all",
            )
        if len(short):  # the lists looked into held fewer rows than were asked for
            everywhere = self._everywhere()
            scores[short], rows[short] = self.index.search(queries[short], count, params=everywhere)
        return self._ranked_again(queries, rows, k) if refine else (scores, rows)

    def _faiss_parameters(self, parameters: Mapping[str, int]) -> Any:
        faiss = import_faiss()
        if self._gpu:
            return None
        if "nprobe" in parameters:
            return faiss.SearchParametersIVF(nprobe=parameters["nprobe"])
        if "ef_search" in parameters:
            return faiss.SearchParametersHNSW(efSearch=parameters["ef_search"])
        return None

    def _everywhere(self) -> Any:
        lists = getattr(self.index, "nlist", None)
        if lists is None:
            return self._faiss_parameters({"ef_search": self.index.ntotal} if "ef_search" in self.parameters else {})
        return self._faiss_parameters({"nprobe": lists})

    def _ranked_again(self, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.empty((len(queries), k), dtype=np.float32)
        best = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), RERANK_QUERIES):
            part = slice(start, start + RERANK_QUERIES)
            candidates = np.sort(rows[part], axis=1)  # equal scores are then ordered by row
            embeddings = self._take(candidates.ravel()).reshape(*candidates.shape, -1)
            exact = np.einsum("qw,qcw->qc", queries[part], embeddings, dtype=np.float32)
            order = np.argsort(-exact, axis=1, kind="stable")[:, :k]
            scores[part] = np.take_along_axis(exact, order, axis=1)
            best[part] = np.take_along_axis(candidates, order, axis=1)
        return scores, best
