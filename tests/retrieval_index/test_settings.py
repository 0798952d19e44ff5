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
        ({"shard_rows": 0}, "shard_rows must be a positive whole number. Given: 0.*index.shard_rows=100000"),
        ({"batch_size": -1}, "batch_size must be a positive whole number"),
        ({"batch_size": "many"}, "batch_size must be a positive whole number. Given: many"),
        ({"recall_k": 2.5}, "recall_k must be a positive whole number. Given: 2.5"),
        ({"recall_queries": True}, "recall_queries must be a positive whole number"),
        ({"caption_key": 0}, "caption_key is the name of a key, or the number .*Given: 0.*a number from 1"),
        ({"id_key": True}, "id_key is the name of a key, or the number .*Given: True"),
        ({"kind": "lsh"}, "Given: lsh. Allowed: auto, flat, hnsw, ivf_flat, ivf_sq8, ivf_pq"),
        ({"memory_budget": "much"}, "no amount of memory. Given: much"),
        ({"target_recall": 95}, "target_recall is a share. Given: 95"),
        ({"target_recall": "high"}, "target_recall is a share. Given: high. Allowed: 0 to 1"),
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
