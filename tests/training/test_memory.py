"""The estimate against what autograd really keeps, counted tensor by tensor, and against hand-made sums."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_families import FAMILIES, made
from tga.training.memory import GIB, LayerShape, estimate_memory, layer_bytes_per_token, layer_shape
from tga.vlm.families import component, family_of
from tga.vlm.freezing import freeze

TOKENS, BATCH = 96, 2


def kept_bytes(shape: LayerShape, layers: int, *, half: bool, trains: bool, checkpointing: bool = False) -> int:
    """Bytes of all distinct tensors of the batch that autograd keeps in a Llama's decoder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4 * shape.keys // shape.width,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).model
    model = model.bfloat16() if half and not trains else model.float()
    model.requires_grad_(trains)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        of_the_batch = any(size in (TOKENS, TOKENS * BATCH) for size in tensor.shape)
        if storage.data_ptr() not in own and of_the_batch:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = torch.bfloat16 if half and not trains else torch.float32
    states = torch.randn(BATCH, TOKENS, shape.width, dtype=dtype, requires_grad=True)
    attended = torch.ones(BATCH, TOKENS, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = model(inputs_embeds=states, attention_mask=attended, use_cache=False).last_hidden_state
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("shape", [LayerShape(64, 64, 160), LayerShape(128, 32, 352)])
def test_a_layer_keeps_what_the_formula_says(shape: LayerShape, half: bool, trains: bool) -> None:
    two, three = (kept_bytes(shape, layers, half=half, trains=trains) for layers in (2, 3))
    counted = (three - two) / (BATCH * TOKENS)
    assert layer_bytes_per_token(shape, half=half, trains=trains) == pytest.approx(counted, rel=0.03)


def test_with_checkpointing_a_layer_keeps_its_input() -> None:
    shape = LayerShape(64, 64, 160)
    two, three = (kept_bytes(shape, layers, half=True, trains=False, checkpointing=True) for layers in (2, 3))
    assert (three - two) / (BATCH * TOKENS) == 2 * shape.width


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_and_training_are_those_of_the_parts(name: str) -> None:
    model = made(name)[0]
    family = family_of(model)
    freeze(model, family, ["projector"])
    found = estimate_memory(
        model, family, batch_size=2, tokens=10, label_tokens=3, kept_layers=1, half=True, checkpointing=False
    )
    trained = sum(p.numel() for p in component(model, family.projector).parameters())
    assert found.training == 18 * trained
    assert found.weights == 4 * (sum(p.numel() for p in model.parameters()) - trained)
    assert layer_shape(model, family) == LayerShape(32, 32, 64)
    layer = 8 * 32 + 2 * (4 * 32) + 6 * 64
    assert found.activations == 2 * 10 * (3 * layer + 2 * 32 + 4 * 32)
    assert found.logits == 2 * 3 * component(model, family.lm_head).weight.shape[0] * 10
    assert found.total == found.certain + found.activations + found.logits + GIB
    assert "GiB" in found.describe()


def test_a_batch_costs_in_proportion_and_checkpointing_less() -> None:
    model = made("llava")[0]
    family = family_of(model)
    freeze(model, family, ["projector", "language_model"])
    sizes = {"tokens": 600, "label_tokens": 40, "kept_layers": 3, "half": True}
    one = estimate_memory(model, family, batch_size=1, checkpointing=False, **sizes)
    four = estimate_memory(model, family, batch_size=4, checkpointing=False, **sizes)
    less = estimate_memory(model, family, batch_size=4, checkpointing=True, **sizes)
    shared = estimate_memory(model, family, batch_size=4, checkpointing=True, shares=8, shared_weights=True, **sizes)
    assert four.activations == 4 * one.activations and less.activations < four.activations
    assert shared.training == less.training // 8 and shared.weights == less.weights // 8
    parameters = list(model.parameters())  # each process holds all of them before they are shared out
    assert shared.loading == sum(4 * p.numel() for p in parameters) == shared.certain
    assert one.loading == 0 and one.certain == one.weights + one.training
    assert "before it is shared out" in shared.describe() and "shared out" not in one.describe()
