"""Algorithm 1 of TGA (Xu et al., ICLR 2025, arXiv 2410.12662): the layer at which a text triggers the refusal.

At the last position of a prompt, with the model's own final norm and language-model head W,

    P_l = softmax(W norm(h_l)),   l = 0 .. L,       D_l = log(P_l / P_{l-1}),   l = 1 .. L

and the activation layer of the prompt is the first l whose top-1 token of D_l is in the sorry set (tga.localization.
sorry). `h_0` are the input embeddings, `h_l` the output of decoder layer l, un-normed. The variant "released" is what
the released code does: a token of the set among the top-5 of P_l - P_{l-1}, from layer 2 on.

A prompt without such a layer has none (None, never -1). As a layer can favour an apology whatever the text says, the
same is counted on benign prompts; a layer at which more than a share of those fire tells nothing, and the contrasted
activation layer is the first one beyond such layers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tga.errors import UserError
from tga.localization.prompts import TextBatch
from tga.vlm.families import Family, component, num_layers
from tga.vlm.hidden_states import text_hidden_states

# Variant -> how many of the largest gains are looked at, and the first layer that counts.
VARIANTS = {"log_ratio": (1, 1), "released": (5, 2)}


@dataclass(frozen=True)
class Trace:
    """What Algorithm 1 saw of one prompt.

    Attributes:
        id: of the prompt.
        layers: every layer at which a sorry token has the top gain, in rising order.
        opens: whether a sorry token is the most likely first token of the answer.
    """

    id: str
    layers: tuple[int, ...]
    opens: bool

    def activation(self, ignored: Collection[int] = ()) -> int | None:
        """The activation layer: the first of `layers` that is not ignored; None where there is none."""
        return next((layer for layer in self.layers if layer not in ignored), None)


def check_variant(variant: str) -> None:
    """Raise UserError for an unknown variant."""
    if variant not in VARIANTS:
        raise UserError(
            "Unknown variant of Algorithm 1",
            given=variant,
            allowed=", ".join(VARIANTS),
            remedy="localization.variant=log_ratio",
        )


def gains_fire(before: Tensor, logits: Tensor, sorry: Tensor, variant: str) -> Tensor:
    """Whether a sorry token has the top gain from one layer to the next.

    Args:
        before, logits: `[batch, vocabulary]`, the logits of layers l-1 and l; half precision counts as float32.
        sorry: ids, `[tokens]` int64.

    Returns:
        `[batch]` bool.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    old, new = (x.to(dtype).log_softmax(dim=-1) for x in (before, logits))
    gain = new - old if variant == "log_ratio" else new.exp() - old.exp()
    top = gain.topk(min(VARIANTS[variant][0], gain.shape[-1]), dim=-1).indices
    return torch.isin(top, sorry).any(dim=-1)


@torch.inference_mode()
def traces(
    model: Any, family: Family, batches: Iterable[TextBatch], sorry: Sequence[int], *, variant: str = "log_ratio"
) -> Iterator[Trace]:
    """One trace per prompt, batch by batch: nothing is kept of a batch when the next one comes.

    The model runs in its own dtype; norm, head and probabilities in float32 at least (a copy of the two where needed).

    Raises:
        UserError: an unknown variant.
    """
    check_variant(variant)
    last, first = num_layers(model, family), VARIANTS[variant][1]
    norm, head = (_precise(component(model, path)) for path in (family.final_norm, family.lm_head))
    for batch in batches:
        states = text_hidden_states(model, family, batch.input_ids, batch.attention_mask, range(last + 1))
        # Prompts are padded on the left: the last position is the last token of every row.
        ends = [_precise_states(states[layer][:, -1]) for layer in range(last + 1)]
        del states
        ids = torch.tensor(list(sorry), device=ends[0].device)
        fires: list[list[int]] = [[] for _ in batch.ids]
        before = head(norm(ends[0]))
        for layer in range(1, last + 1):
            logits = head(norm(ends[layer]))
            if layer >= first:
                for row in gains_fire(before, logits, ids, variant).nonzero().flatten().tolist():
                    fires[row].append(layer)
            before = logits
        opens = torch.isin(before.argmax(dim=-1), ids).tolist()
        for identity, layers, opened in zip(batch.ids, fires, opens, strict=True):
            yield Trace(identity, tuple(layers), bool(opened))


def _precise(module: nn.Module) -> nn.Module:
    """The module in float32 at least: rounded to half precision, the logits of two layers differ by noise."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    return module if dtypes <= {torch.float32, torch.float64} else copy.deepcopy(module).float()


def _precise_states(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


@dataclass
class LayerCounts:
    """Prompts by activation layer and by layer that fires: all that the band and the shares need of them.

    Attributes:
        layers: L.
        total, opening: prompts seen, and those whose most likely answer opens with a sorry token.
        activated: layer -> prompts with this activation layer.
        fired: layer -> prompts at which it fires, first or not.
    """

    layers: int
    total: int = 0
    opening: int = 0
    activated: dict[int, int] = field(default_factory=dict)
    fired: dict[int, int] = field(default_factory=dict)

    def add(self, trace: Trace, ignored: Collection[int] = ()) -> None:
        """Count one prompt; the layers `ignored` are no activation layers."""
        self.total += 1
        self.opening += trace.opens
        for layer in trace.layers:
            self.fired[layer] = self.fired.get(layer, 0) + 1
        activation = trace.activation(ignored)
        if activation is not None:
            self.activated[activation] = self.activated.get(activation, 0) + 1

    def fired_share(self, layer: int) -> float:
        """Share of the prompts at which the layer fires."""
        return self.fired.get(layer, 0) / self.total if self.total else 0.0

    def frequent(self, share: float) -> tuple[int, ...]:
        """Layers that fire for more than `share` of the prompts."""
        return tuple(layer for layer in range(1, self.layers + 1) if self.fired_share(layer) > share)

    @property
    def without(self) -> int:
        """Prompts without an activation layer."""
        return self.total - sum(self.activated.values())

    def quantile(self, q: float) -> float | None:
        """Quantile, linear between neighbours, of the activation layers of the prompts that have one; None for none."""
        count = self.total - self.without
        if not count:
            return None
        place = q * (count - 1)
        low, high = self._at(int(place)), self._at(min(int(place) + 1, count - 1))
        return low + (high - low) * (place - int(place))

    def _at(self, rank: int) -> int:
        """The activation layer of the prompt at this rank, counted from 0."""
        seen = 0
        for layer in sorted(self.activated):
            seen += self.activated[layer]
            if seen > rank:
                return layer
        raise IndexError(rank)
