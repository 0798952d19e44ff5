"""How much memory a training step takes, from the shape of the model alone: an estimate, before anything is loaded.

    weights      frozen parameters in their dtype
    training     of each trained parameter: value, gradient and two AdamW moments in float32, and its copy in bfloat16
    activations  what autograd keeps for the backward pass, per token and decoder layer (`layer_bytes_per_token`)
    logits       of the label positions: in the compute dtype, in float32, and their gradient in float32

Activations are those of a Llama-like layer with SDPA, which keeps no attention weights: the float32 copies that both
norms take of the residual, q, k, v and the attention's output, the MLP's gate, its activation and the up projection.
Weights that train also keep the inputs of their layers. `tests/training/test_memory.py` counts the saved tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tga.vlm.families import Family, component

GIB = 2**30
DEVICE_GIB = 1.0  # the CUDA context, the libraries' workspaces, what the allocator cannot use


@dataclass(frozen=True)
class LayerShape:
    """Widths of a decoder layer: of the residual, of all keys (or values) together, of the MLP's inside."""

    width: int
    keys: int
    inner: int


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by kind, for one device.

    loading: of the whole model, which each device holds for a moment before weights are shared out; 0 where none are.
    """

    weights: int
    training: int
    activations: int
    logits: int
    loading: int = 0

    @property
    def certain(self) -> int:
        """What has to fit whatever the batch."""
        return max(self.weights + self.training, self.loading)

    @property
    def total(self) -> int:
        """All of it, with what a device keeps for itself."""
        step = self.weights + self.training + self.activations + self.logits
        return max(step, self.loading) + int(DEVICE_GIB * GIB)

    def describe(self) -> str:
        """One line for people, in GiB."""
        kinds = ("weights", "training", "activations", "logits")
        parts = ", ".join(f"{kind} {getattr(self, kind) / GIB:.2f}" for kind in kinds)
        parts += f", whole before it is shared out {self.loading / GIB:.2f}" if self.loading else ""
        return f"{self.total / GIB:.1f} GiB ({parts}, device {DEVICE_GIB:.0f})"


def estimate_memory(
    model: nn.Module,
    family: Family,
    *,
    batch_size: int,
    tokens: int,
    label_tokens: int,
    kept_layers: int,
    half: bool,
    checkpointing: bool,
    shares: int = 1,
    shared_weights: bool = False,
) -> MemoryEstimate:
    """Memory of a step of `batch_size` prompts of `tokens` tokens, `label_tokens` of them labels.

    Args:
        model: laid out, frozen and with its adapters, as it would train; on any device, also meta.
        kept_layers: decoder layers whose hidden states the objectives keep.
        half: the compute dtype is bfloat16.
        checkpointing: each layer keeps its input alone and runs again in the backward pass.
        shares: processes that share out what trains (and with `shared_weights` the frozen parameters too).
    """
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    llm_trains = any(p.requires_grad for p in component(model, family.language_model).parameters())
    shape, layers = layer_shape(model, family), len(list(component(model, family.decoder_layers).children()))
    size = 2 if half else 4
    per_layer = layer_bytes_per_token(shape, half=half, trains=llm_trains)
    if checkpointing:
        kept = layers * size * shape.width + per_layer  # every layer's input, and one layer at work
    else:
        kept = layers * per_layer
    kept += kept_layers * size * shape.width + 4 * shape.width
    vocabulary = next(component(model, family.lm_head).parameters()).shape[0]
    return MemoryEstimate(
        weights=frozen // (shares if shared_weights else 1),
        training=trained * (16 + 2 * half) // shares,
        activations=batch_size * tokens * kept,
        logits=batch_size * label_tokens * vocabulary * (size + 8),
        loading=frozen + 4 * trained if shared_weights else 0,
    )


def layer_bytes_per_token(shape: LayerShape, *, half: bool, trains: bool) -> int:
    """Bytes that autograd keeps of one token in one decoder layer, without gradient checkpointing."""
    size = 2 if half else 4
    kept = 8 * shape.width  # two norms, float32
    kept += size * (2 * shape.width + 2 * shape.keys)  # q and the attention's output, k and v
    kept += size * 3 * shape.inner
    if trains:
        kept += (18 if half else 16) * shape.width  # the norms' results, the inputs of q, k, v, gate and up
        kept += size * shape.inner  # the input of down
    return kept


def layer_shape(model: nn.Module, family: Family) -> LayerShape:
    """The widths of the decoder's layers, from its config."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LayerShape(config.hidden_size, keys * head, config.intermediate_size)
