"""Settings that cannot be, each with what to set instead."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.settings import IndexSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "Given: int8. Allowed: float32, float16"),
        ({"shard_rows": 0}, "shard_rows must be positive.*index.shard_rows=100000"),
        ({"batch_size": -1}, "batch_size must be positive"),
        ({"kind": "lsh"}, "Given: lsh. Allowed: auto, flat, hnsw, ivf_flat, ivf_sq8, ivf_pq"),
        ({"memory_budget": "much"}, "no amount of memory. Given: much"),
        ({"target_recall": 95}, "target_recall is a share. Given: 95"),
        ({"accept_recall": -0.1}, "accept_recall is a share"),
        ({"search_device": "tpu"}, "Given: tpu. Allowed: auto, cpu, cuda"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        IndexSettings(**settings).check()


def test_defaults_are_possible() -> None:
    IndexSettings().check()
    assert IndexSettings().budget == 16 * 2**30
