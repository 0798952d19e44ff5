"""Exact search by blocks with torch: the same neighbours as a flat FAISS index, without FAISS in the process.

For the neighbours of a whole data set, computed once: queries and corpus are cut into blocks, and a block of scores is
merged into the best found so far, so memory does not grow with either side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from retrieval_index.errors import RetrievalError


def exact_top_k(
    queries: np.ndarray,
    shards: Sequence[np.ndarray],
    k: int,
    *,
    query_block: int = 4096,
    corpus_block: int = 16_384,
    device: str = "cpu",
    report: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of largest inner product for every query.

    Args:
        queries: `[queries, width]` float32.
        shards: embeddings `[rows, width]` each (memory-mapped, any float type); rows are numbered through all of them.
        k: neighbours per query.
        query_block, corpus_block: rows per block of scores.
        device: torch device of the products.
        report: is told how many queries are done.

    Returns:
        Scores `[queries, k]` float32, descending, and rows `[queries, k]` int64; equal scores by ascending row.

    Raises:
        RetrievalError: `k` outside of 1..rows, or queries of another width.
    """
    rows = sum(len(shard) for shard in shards)
    check_k(k, rows)
    width = shards[0].shape[1]
    check_width(queries, width)
    scores = np.empty((len(queries), k), dtype=np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), query_block):
        block = torch.from_numpy(np.ascontiguousarray(queries[start : start + query_block], dtype=np.float32)).to(
            device
        )
        best_scores, best_rows = _search_block(block, shards, k, corpus_block)
        stop = start + len(block)
        scores[start:stop], found[start:stop] = best_scores.cpu().numpy(), best_rows.cpu().numpy()
        if report is not None:
            report(stop)
    return scores, found


def check_k(k: int, rows: int) -> None:
    """Raise RetrievalError where `k` neighbours cannot be had from `rows` captions."""
    if not 1 <= k <= rows:
        raise RetrievalError(
            "As many neighbours as asked for cannot be had",
            given=f"k={k}",
            allowed=f"1 to {rows}",
            remedy=f"k={min(10, rows)} (of tga-train: data.neighbours_k), or a larger corpus",
        )


def check_width(queries: np.ndarray, width: int) -> None:
    """Raise RetrievalError where queries are not `[queries, width]`."""
    if queries.ndim != 2 or queries.shape[1] != width:
        raise RetrievalError(
            "The queries do not fit the index",
            given=f"shape {list(queries.shape)}",
            allowed=f"[queries, {width}]",
            remedy="encode them with the encoder of the index",
        )


def _search_block(
    queries: torch.Tensor, shards: Sequence[np.ndarray], k: int, corpus_block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.full((len(queries), 0), 0.0, device=queries.device)
    rows = torch.full((len(queries), 0), 0, dtype=torch.int64, device=queries.device)
    offset = 0
    for shard in shards:
        for start in range(0, len(shard), corpus_block):
            corpus = torch.from_numpy(np.array(shard[start : start + corpus_block], dtype=np.float32)).to(
                queries.device
            )
            block_scores, block_rows = torch.topk(queries @ corpus.T, min(k, len(corpus)), dim=1)
            scores = torch.cat([scores, block_scores], dim=1)
            rows = torch.cat([rows, block_rows + (offset + start)], dim=1)
            scores, rows = _best(scores, rows, k)
        offset += len(shard)
    return scores, rows


def _best(scores: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best columns, by descending score and then ascending row (two stable sorts)."""
    rows, by_row = torch.sort(rows, dim=1)
    scores, by_score = torch.sort(scores.gather(1, by_row), dim=1, descending=True, stable=True)
    return scores[:, :k], rows.gather(1, by_score)[:, :k]
