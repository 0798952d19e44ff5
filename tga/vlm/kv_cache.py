"""Under which name transformers takes a KV cache: `cache` in new versions (5.24 is one), before that `past_key_values`.

Models of new versions still take the old name for a while, but their decoder layers are called with the new one, and
that is what a hook sees.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from transformers import LlamaModel

NAMES = ("cache", "past_key_values")


@functools.cache
def cache_argument() -> str:
    """The argument of a model's forward pass that takes the KV cache, in the version of transformers at hand."""
    taken = inspect.signature(LlamaModel.forward).parameters
    return next(name for name in NAMES if name in taken)


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the keyword arguments of a module, under either name; None without one."""
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)
