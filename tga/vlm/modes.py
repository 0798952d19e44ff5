"""Train mode and eval mode of a model for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module and all in it in eval mode for a block; each part's own mode comes back.

    No dropout of any kind is left: layers of dropout are not all, attention drops by a function that asks its module's
    mode (`attention_dropout`).
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
