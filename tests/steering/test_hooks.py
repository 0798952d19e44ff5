"""Corrected layers: the formula against layers patched by hand, and everything that must not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.steering.requests import Setup, greedy_without_cache, in_float64, patched, random_shifts, tiny_setup
from tga.errors import UserError
from tga.steering.hooks import steered
from tga.vlm.families import component

LAYERS = (1, 2, 3)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("pictures"))


def generate(setup: Setup, inputs: dict[str, Tensor], tokens: int = 8, **options: object) -> Tensor:
    """The new tokens of transformers' own generate, `tokens` for every row."""
    given = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 2, **options}
    return setup.model.generate(**inputs, **given)[:, inputs["input_ids"].shape[1] :]


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize(("positions", "alpha"), [("all", 1.0), ("all", -0.4), ("last", 0.7)])
def test_generated_tokens_and_logits_equal_those_of_patched_layers(tmp_path: Path, positions: str, alpha: float):
    """In float64, with a KV cache, against whole forward passes without one."""
    setup = in_float64(tiny_setup(tmp_path))
    shifts = random_shifts(LAYERS)
    inputs = setup.request(1, first=1)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    first = inputs["input_ids"].shape[1] - 1 if positions == "last" else 0
    with patched(setup, shifts, alpha, first):
        expected = greedy_without_cache(setup.model, inputs, 8)
        logits = setup.model(**inputs).logits[:, -1]
    with steered(setup.model, setup.family, shifts, alpha=alpha, positions=positions):
        assert generate(setup, inputs, eos_token_id=None)[0].tolist() == expected
        # In float64 the shift is scaled in float32 first: an error of 1e-7 times its size.
        torch.testing.assert_close(setup.model(**inputs).logits[:, -1], logits, rtol=1e-5, atol=1e-5)
    assert generate(setup, inputs, eos_token_id=None)[0].tolist() != expected


def test_chosen_layers_only(setup: Setup):
    shifts, inputs = random_shifts([2]), setup.request()
    with patched(setup, shifts, 0.5):
        expected = setup.model(**inputs).logits
    with steered(setup.model, setup.family, shifts, alpha=0.5):
        torch.testing.assert_close(setup.model(**inputs).logits, expected, rtol=0, atol=0)


def test_alpha_zero_is_bit_identical_and_adds_no_hook(setup: Setup):
    inputs, before = setup.request(), hook_count(setup.model)
    plain = setup.model(**inputs).logits
    with steered(setup.model, setup.family, random_shifts(LAYERS), alpha=0.0):
        assert hook_count(setup.model) == before
        assert torch.equal(setup.model(**inputs).logits, plain)


def test_the_model_comes_back_bit_identical_also_after_an_exception(setup: Setup):
    inputs, before = setup.request(), hook_count(setup.model)
    plain, weights = setup.model(**inputs).logits, {n: p.clone() for n, p in setup.model.named_parameters()}
    with steered(setup.model, setup.family, random_shifts(LAYERS), alpha=1.0):
        assert not torch.allclose(setup.model(**inputs).logits, plain, atol=0.1)
    with pytest.raises(RuntimeError, match="in the middle"):
        with steered(setup.model, setup.family, random_shifts(LAYERS), alpha=1.0):
            raise RuntimeError("in the middle")
    assert hook_count(setup.model) == before
    assert torch.equal(setup.model(**inputs).logits, plain)
    assert all(torch.equal(weights[name], parameter) for name, parameter in setup.model.named_parameters())


@pytest.mark.parametrize("positions", ["all", "last"])
def test_padded_batches_answer_as_single_rows(setup: Setup, positions: str):
    shifts = random_shifts(LAYERS, rows=4)
    with steered(setup.model, setup.family, shifts, alpha=0.8, positions=positions):
        together = generate(setup, setup.request())
    for row in range(4):
        own = {layer: shift[row] for layer, shift in shifts.items()}
        with steered(setup.model, setup.family, own, alpha=0.8, positions=positions):
            assert torch.equal(generate(setup, setup.request(1, first=row))[0], together[row])
    assert len({tuple(row.tolist()) for row in together}) == 4


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}],
    ids=["beams", "beams returned"],
)
def test_beams_take_the_shift_of_their_request(setup: Setup, options: dict[str, int]):
    shifts = random_shifts(LAYERS, rows=4)
    with steered(setup.model, setup.family, shifts, alpha=0.8):
        together = generate(setup, setup.request(), **options)
    returned = options.get("num_return_sequences", 1)
    for row in range(4):
        own = {layer: shift[row] for layer, shift in shifts.items()}
        with steered(setup.model, setup.family, own, alpha=0.8):
            alone = generate(setup, setup.request(1, first=row), **options)
        assert torch.equal(alone, together[row * returned : (row + 1) * returned])


def test_sampling_with_a_seed(setup: Setup):
    options = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2, "tokens": 6}

    def sampled() -> Tensor:
        torch.manual_seed(11)
        return generate(setup, setup.request(2), **options)

    plain, shifts = sampled(), random_shifts(LAYERS, rows=2)
    with steered(setup.model, setup.family, shifts, alpha=0.8):
        first, again = sampled(), sampled()
    with patched(setup, {layer: shift.repeat_interleave(2, dim=0) for layer, shift in shifts.items()}, 0.8):
        by_hand = sampled()
    assert torch.equal(first, again) and torch.equal(first, by_hand)
    assert not torch.equal(first, plain) and torch.equal(sampled(), plain)


def test_rows_that_leave_the_batch_take_their_shifts_along(setup: Setup):
    shifts = random_shifts(LAYERS, rows=4)
    whole, fewer = setup.request(), {name: value[[1, 3]] for name, value in setup.request().items()}
    with steered(setup.model, setup.family, shifts, alpha=0.8) as steering:
        expected = setup.model(**whole).logits[[1, 3]]
        steering.keep(torch.tensor([1, 2, 3]))
        steering.keep(torch.tensor([0, 2]))
        torch.testing.assert_close(setup.model(**fewer).logits, expected, rtol=1e-5, atol=1e-5)


def test_requests_without_a_picture_are_left_alone(setup: Setup):
    inputs = setup.request()
    plain = setup.model(**inputs).logits
    pictured = torch.tensor([True, False, False, True])
    for shifts in (random_shifts(LAYERS), random_shifts(LAYERS, rows=4)):
        with steered(setup.model, setup.family, shifts, alpha=0.8, pictured=pictured):
            found = setup.model(**inputs).logits
        assert torch.equal(found[1:3], plain[1:3])
        assert not torch.allclose(found[[0, 3]], plain[[0, 3]], atol=0.1)


def test_the_dtype_of_the_states_stays(tmp_path: Path):
    setup = tiny_setup(tmp_path)
    setup.model.to(torch.bfloat16)
    inputs = setup.request(2)
    seen: list[torch.dtype] = []
    with steered(setup.model, setup.family, random_shifts(LAYERS), alpha=0.5):
        handle = component(setup.model, setup.family.decoder_layers)[1].register_forward_hook(  # type: ignore[index]
            lambda _module, _args, output: seen.append(output.dtype)
        )
        setup.model(**inputs)
        handle.remove()
    assert seen == [torch.bfloat16]


class _Tuples(nn.Module):
    """A decoder layer of the older kind: its state comes with something else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, str]:
        return self.layer(*args, **kwargs), "cache"


def test_layers_that_return_tuples(setup: Setup):
    layer = component(setup.model, setup.family.decoder_layers)[0]  # type: ignore[index]
    caught: list[tuple[Tensor, str]] = []
    decoder = component(setup.model, setup.family.decoder_layers)
    decoder[0] = _Tuples(layer)  # type: ignore[operator]

    def unwrap(_module: nn.Module, _args: object, output: tuple[Tensor, str]) -> Tensor:
        caught.append(output)
        return output[0]

    try:
        shift = random_shifts([1])
        with steered(setup.model, setup.family, shift, alpha=1.0):
            handle = decoder[0].register_forward_hook(unwrap)  # type: ignore[operator, union-attr]
            setup.model(**setup.request(1))
            handle.remove()
        state, rest = caught[0]
        plain: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _module, _args, output: plain.append(output))
        decoder[0] = layer  # type: ignore[operator]
        setup.model(**setup.request(1))
        handle.remove()
        assert rest == "cache" and torch.equal(state, plain[0] - shift[1])
    finally:
        decoder[0] = layer  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda: {"positions": "first"}, UserError, "Unknown positions"),
        (lambda: {"shifts": random_shifts([0])}, ValueError, r"no decoder layers \[0\]"),
        (lambda: {"shifts": random_shifts([4])}, ValueError, r"there are 1 to 3"),
        (lambda: {"shifts": random_shifts([1], rows=3)}, ValueError, "4 rows for the shifts of 3 requests"),
    ],
)
def test_what_cannot_be_is_refused(setup: Setup, change: Callable[[], dict], error: type[Exception], text: str):
    options = {"shifts": random_shifts(LAYERS), "alpha": 1.0, "positions": "all", **change()}
    before = hook_count(setup.model)
    with pytest.raises(error, match=text):
        with steered(setup.model, setup.family, **options):
            setup.model(**setup.request())
    assert hook_count(setup.model) == before
