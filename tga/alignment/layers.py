"""Which layers an objective looks at, from what a user writes."""

from __future__ import annotations

from collections.abc import Sequence

from tga.errors import UserError


def resolve_layers(spec: str | Sequence[int], num_layers: int, *, key: str = "alignment.layers") -> tuple[int, ...]:
    """Layer numbers in rising order.

    Args:
        spec: "all" for every decoder layer 1..L, or a list of numbers in 0..L, where 0 is the input embeddings.
        num_layers: L, the number of decoder layers.
        key: the key that the layers were written under, for the messages.

    Raises:
        UserError: a number outside 0..L, a repeated one, an empty list, or another word.
    """
    allowed = f'"all" (1 to {num_layers}) or a list of numbers from 0 (the input embeddings) to {num_layers}'
    if isinstance(spec, str):
        if spec == "all":
            return tuple(range(1, num_layers + 1))
        raise UserError("Unknown layer set", given=repr(spec), allowed=allowed, remedy=f"{key}=[0,1,2]")
    layers = list(spec)
    integers = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)
    if not integers or not layers or len(set(layers)) < len(layers):
        problem = "Layers must be different whole numbers, at least one"
        raise UserError(problem, given=layers, allowed=allowed, remedy=f"{key}=[0,1,2]")
    wrong = [layer for layer in layers if not 0 <= layer <= num_layers]
    if wrong:
        raise UserError("Layer numbers outside the language model", given=wrong, allowed=allowed, remedy=f"{key}=[...]")
    return tuple(sorted(layers))


def measured_layers(spec: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layer numbers of a metric; as `resolve_layers`, but "all" includes 0, the input embeddings.

    Raises:
        UserError: as `resolve_layers`.
    """
    if spec == "all":
        return tuple(range(num_layers + 1))
    return resolve_layers(spec, num_layers, key="evaluation.metrics.NAME.layers")
