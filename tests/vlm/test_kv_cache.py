"""The KV cache is passed, and found by hooks, under the name that the installed transformers uses."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from transformers import DynamicCache

from tests.tiny import tiny_llm
from tga.vlm.kv_cache import cache_among, cache_argument


def test_a_layer_gets_the_cache_where_a_hook_looks_for_it_and_nothing_is_deprecated():
    model = tiny_llm(layers=2)
    cache, seen = DynamicCache(config=model.config), []

    def look(_module: nn.Module, _args: object, kwargs: dict[str, object]) -> None:
        seen.append(cache_among(kwargs))

    model.model.layers[1].register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(input_ids=torch.tensor([[1, 5, 6]]), use_cache=True, **{cache_argument(): cache})
    assert len(seen) == 1
    assert seen[0] is cache
    assert cache.get_seq_length() == 3


def test_either_name_is_found_and_no_cache_is_none():
    cache = DynamicCache()
    assert cache_among({"past_key_values": cache}) is cache
    assert cache_among({"cache": cache, "past_key_values": None}) is cache
    assert cache_among({"attention_mask": None, "cache": None}) is None
