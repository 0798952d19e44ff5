"""Hidden states of chosen decoder layers, without computing or keeping the others.

Layer numbers are the same everywhere: 0 is the input of the first decoder layer (the input embeddings, image tokens
included), `l` in 1..L the output of decoder layer `l`, never normed. PyTorch calls a forward hook with what a module
returns; ours store it under the layer's number, and are removed when the block ends, also after an exception. A
tensor keeps its graph, so a loss on it reaches whatever produced it. Under gradient checkpointing a layer runs again
in the backward pass; only the first arrival is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tga.errors import UserError
from tga.vlm.families import Family, component, num_layers
from tga.vlm.modes import evaluating


class _DeepestLayerReached(Exception):
    """Ends a forward pass from inside a hook, once nothing deeper is wanted."""


@contextmanager
def capture_hidden_states(model: nn.Module, family: Family, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the hidden states of `layers` during the one forward pass that runs inside the block.

    Yields:
        A dictionary, filled when the block ends: layer number -> `[batch, tokens, width]` in the model's dtype.

    Raises:
        UserError: a layer number outside 0..L.
        RuntimeError: the block ended well, but a layer that was asked for did not run.
    """
    states: dict[int, Tensor] = {}
    with _hooks(model, family, layers, states, stop_after=None):
        yield states
    missing = sorted(set(layers) - set(states))
    if missing:
        raise RuntimeError(f"no hidden state arrived from layers {missing}; those that did: {sorted(states)}")


def text_hidden_states(
    model: nn.Module, family: Family, input_ids: Tensor, attention_mask: Tensor, layers: Collection[int]
) -> dict[int, Tensor]:
    """Hidden states of text fed to the language model alone; layers beyond the deepest one asked for are not run.

    Positions count the attended tokens only, so that left and right padding give the same states. A text is a target
    or a measurement, so it is read without dropout, whatever the multimodal forward beside it does.

    Args:
        input_ids: `[batch, tokens]` int64.
        attention_mask: `[batch, tokens]`, 1 where a token is attended.
        layers: layer numbers in 0..L.

    Returns:
        Layer number -> `[batch, tokens, width]` in the model's dtype. Gradients follow the caller's grad mode.

    Raises:
        UserError: a layer number outside 0..L.
    """
    if not layers:
        return {}
    states: dict[int, Tensor] = {}
    position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    language_model = component(model, family.language_model)
    with evaluating(language_model), _hooks(model, family, layers, states, stop_after=max(layers)):
        try:
            language_model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            )
        except _DeepestLayerReached:
            pass
    missing = sorted(set(layers) - set(states))
    if missing:
        raise RuntimeError(f"no hidden state arrived from layers {missing}; those that did: {sorted(states)}")
    return states


def multimodal_hidden_states(
    model: nn.Module, family: Family, layers: Collection[int], **inputs: Any
) -> tuple[Tensor, dict[int, Tensor]]:
    """One forward pass of the whole model: the last normed hidden state, and the states of `layers`.

    Logits are computed for a single position only; the LM loss takes the normed state (tga.vlm.lm_loss). Without
    pictures the language model runs alone, and the results still hang on the projector by a zero, so that a text-only
    batch gives it a zero gradient instead of none, which distributed training would wait for.

    Args:
        inputs: what the model's forward takes, such as input_ids, attention_mask, pixel_values and what else the
            family needs of its pictures (`tga.vlm.pictures`).

    Returns:
        last hidden state `[batch, tokens, width]` after the final norm, and layer number -> `[batch, tokens, width]`.
    """
    pictured = inputs.get("pixel_values") is not None
    last: list[Tensor] = []
    handle = component(model, family.final_norm).register_forward_hook(lambda _m, _a, output: last.append(output))
    try:
        with capture_hidden_states(model, family, layers) as states:
            if pictured:
                model(**inputs, logits_to_keep=1, use_cache=False)
            else:
                given = {
                    name: value for name, value in inputs.items() if name not in ("pixel_values", family.token_types)
                }
                component(model, family.language_model)(**given, use_cache=False)
    finally:
        handle.remove()
    if not pictured and torch.is_grad_enabled():
        zero = _zero_of(component(model, family.projector))
        return last[0] + zero.to(last[0]), {layer: state + zero.to(state) for layer, state in states.items()}
    return last[0], states


def _zero_of(module: nn.Module) -> Tensor:
    """A zero that depends on every trained parameter of the module."""
    total = torch.zeros(())
    for parameter in module.parameters():
        if parameter.requires_grad:
            total = total.to(parameter.device) + parameter.sum() * 0.0
    return total


@contextmanager
def _hooks(
    model: nn.Module,
    family: Family,
    layers: Collection[int],
    states: dict[int, Tensor],
    stop_after: int | None,
) -> Iterator[None]:
    _check_layers(layers, num_layers(model, family))
    decoder = component(model, family.decoder_layers)
    assert isinstance(decoder, nn.ModuleList)
    handles: list[RemovableHandle] = []
    try:
        for layer in sorted(set(layers)):
            if layer == 0:
                hook = _input_hook(states, stop=stop_after == 0)
                handles.append(decoder[0].register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(
                    decoder[layer - 1].register_forward_hook(_output_hook(states, layer, stop=stop_after == layer))
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(states: dict[int, Tensor], stop: bool) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.setdefault(0, args[0] if args else kwargs["hidden_states"])
        if stop:
            raise _DeepestLayerReached

    return hook


def _output_hook(states: dict[int, Tensor], layer: int, stop: bool) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        states.setdefault(layer, hidden)
        if stop:
            raise _DeepestLayerReached

    return hook


def _check_layers(layers: Collection[int], last: int) -> None:
    wrong = sorted(layer for layer in layers if not 0 <= layer <= last)
    if wrong:
        raise UserError(
            "Layer numbers outside the language model",
            given=wrong,
            allowed=f"0 (the input embeddings) to {last} (the last decoder layer)",
            remedy="alignment.layers=[...]",
        )
