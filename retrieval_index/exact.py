"""Exact search by blocks with torch: the same neighbours as a flat FAISS index, without FAISS in the process.

For the neighbours of a whole data set, computed once: queries and corpus are cut into blocks, and a block of scores is
merged into the best found so far, so memory does not grow with either side. On a GPU that has the room, the corpus is
sent there once and stays for all blocks of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from retrieval_index.checks import check_k, check_width

CORPUS_BLOCK = {"cpu": 16_384, "cuda": 65_536}
RESIDENT_SHARE = 0.6  # of a GPU's free memory, at most, for the corpus


class ExactSearch:
    """Search in embeddings by comparison with all of them.

    Args:
        shards: embeddings `[rows, width]` each (memory-mapped, any float type); rows are numbered through all of them.
        device: torch device of the products.
        query_block, corpus_block: rows per block of scores; None: as suits the device.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        *,
        device: str = "cpu",
        query_block: int = 4096,
        corpus_block: int | None = None,
    ) -> None:
        self._shards, self._device = shards, torch.device(device)
        self._query_block = query_block
        self._corpus_block = corpus_block or CORPUS_BLOCK["cuda" if self._device.type == "cuda" else "cpu"]
        self._resident: list[tuple[int, torch.Tensor]] | None = None
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            if sum(shard.nbytes for shard in shards) < RESIDENT_SHARE * free:
                self._resident = list(self._sent())

    def search(
        self, queries: np.ndarray, k: int, report: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` rows of largest inner product for every query.

        Args:
            queries: `[queries, width]` float32.
            k: neighbours per query.
            report: is told how many queries are done.

        Returns:
            Scores `[queries, k]` float32, descending, and rows `[queries, k]` int64; equal scores by ascending row.

        Raises:
            RetrievalError: `k` outside of 1..rows, or queries of another width.
        """
        check_k(k, sum(len(shard) for shard in self._shards))
        check_width(queries, self._shards[0].shape[1])
        scores = np.empty((len(queries), k), dtype=np.float32)
        found = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), self._query_block):
            block = np.ascontiguousarray(queries[start : start + self._query_block], dtype=np.float32)
            best_scores, best_rows = self._search_block(torch.from_numpy(block).to(self._device), k)
            stop = start + len(block)
            scores[start:stop], found[start:stop] = best_scores.cpu().numpy(), best_rows.cpu().numpy()
            if report is not None:
                report(stop)
        return scores, found

    def _search_block(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.empty((len(queries), 0), device=self._device)
        rows = torch.empty((len(queries), 0), dtype=torch.int64, device=self._device)
        for start, corpus in self._resident if self._resident is not None else self._sent():
            block_scores, block_rows = torch.topk(queries @ corpus.float().T, min(k, len(corpus)), dim=1)
            scores = torch.cat([scores, block_scores], dim=1)
            rows = torch.cat([rows, block_rows + start], dim=1)
            scores, rows = _best(scores, rows, k)
        return scores, rows

    def _sent(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, block `[rows, width]` on the device in the type it is stored in)."""
        offset = 0
        for shard in self._shards:
            for start in range(0, len(shard), self._corpus_block):
                block = torch.from_numpy(np.array(shard[start : start + self._corpus_block]))
                yield offset + start, block.to(self._device)
            offset += len(shard)


def _best(scores: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best columns, by descending score and then ascending row (two stable sorts)."""
    rows, by_row = torch.sort(rows, dim=1)
    scores, by_score = torch.sort(scores.gather(1, by_row), dim=1, descending=True, stable=True)
    return scores[:, :k], rows.gather(1, by_score)[:, :k]
