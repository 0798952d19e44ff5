"""The guide loss against the float64 oracle, and its behaviour on batches that lack spans."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.alignment.conftest import GuideOracle
from tga.alignment.objective import Spans
from tga.alignment.tga import TGA, cosine, located, paper, released
from tga.errors import UserError


def total(objective: TGA, spans: Spans, progress: float = 0.0) -> torch.Tensor:
    losses = objective.losses(spans, progress)
    assert set(losses) == {"tga_pair", "tga_rank"}
    return losses["tga_pair"] + losses["tga_rank"]


def test_cosines_equal_the_oracle(oracle: GuideOracle) -> None:
    ours = cosine(oracle.spans.image, oracle.spans.caption).numpy()
    np.testing.assert_allclose(ours, oracle.values["cos_image_caption"], rtol=1e-12)
    ours = cosine(oracle.spans.retrieved, oracle.spans.caption).numpy()
    np.testing.assert_allclose(ours, oracle.values["cos_retrieved_caption"], rtol=1e-12)


def test_presets_equal_the_oracle(oracle: GuideOracle) -> None:
    layers = oracle.spans.layers
    progress = float(oracle.values["released_t"])
    assert total(paper(5), oracle.spans).item() == pytest.approx(float(oracle.values["paper"]), rel=1e-12)
    assert total(located(layers), oracle.spans).item() == pytest.approx(float(oracle.values["located"]), rel=1e-12)
    ours = total(released(layers), oracle.spans, progress).item()
    assert ours == pytest.approx(float(oracle.values["released"]), rel=1e-12)


def test_presets_are_what_the_sources_say() -> None:
    assert paper(32).layers == tuple(range(1, 33))
    assert (paper(32).reduction, paper(32).form, paper(32).pair_weight, paper(32).rank_weight) == ("sum", "log", 1, 1)
    assert released().layers == (10, 11, 12, 13, 14, 15, 16, 17, 18)
    assert (located([2, 0]).layers, located([2, 0]).reduction) == ((2, 0), "mean")


def test_a_one_token_caption_counts_like_any_other(oracle: GuideOracle) -> None:
    alone = dataclasses.replace(oracle.spans, has_pair=torch.tensor([False, False, True]))
    image, retrieved = oracle.values["cos_image_caption"][:, 2], oracle.values["cos_retrieved_caption"][:, 2]
    expected = np.mean(-image + np.log1p(np.exp(retrieved - image)))
    assert total(located(oracle.spans.layers), alone).item() == pytest.approx(expected, rel=1e-12)


def test_samples_without_retrieved_text_keep_the_pair_term(oracle: GuideOracle) -> None:
    spans = dataclasses.replace(oracle.spans, has_retrieved=torch.tensor([True, False, False]))
    losses = located(spans.layers).losses(spans, 0.0)
    image, retrieved = oracle.values["cos_image_caption"], oracle.values["cos_retrieved_caption"]
    assert losses["tga_pair"].item() == pytest.approx(-image.mean(), rel=1e-12)
    expected = np.log1p(np.exp(retrieved - image))[:, 0].mean()
    assert losses["tga_rank"].item() == pytest.approx(expected, rel=1e-12)


def test_text_only_and_empty_spans_give_connected_zeros() -> None:
    hidden = torch.zeros(2, 3, 4, requires_grad=True)
    none = torch.zeros(3, dtype=torch.bool)
    for retrieved in (None, torch.zeros(2, 3, 4)):
        spans = Spans((0, 1), hidden * 1.0, torch.zeros(2, 3, 4), retrieved, none, none)
        for form in ("log", "exp"):
            losses = TGA((0, 1), form=form).losses(spans, 0.0)
            assert losses["tga_pair"].item() == 0.0 and losses["tga_rank"].item() == 0.0
            gradient = torch.autograd.grad(losses["tga_pair"] + losses["tga_rank"], hidden, retain_graph=True)[0]
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_without_retrieved_text_there_is_no_ranking_term(oracle: GuideOracle) -> None:
    spans = dataclasses.replace(oracle.spans, retrieved=None)
    losses = located(spans.layers).losses(spans, 0.0)
    assert losses["tga_rank"].item() == 0.0
    assert losses["tga_pair"].item() == pytest.approx(-oracle.values["cos_image_caption"].mean(), rel=1e-12)


def test_layers_are_selected_by_number(oracle: GuideOracle) -> None:
    losses = TGA((4, 2)).losses(oracle.spans, 0.0)
    expected = -oracle.values["cos_image_caption"][[3, 1]].mean()
    assert losses["tga_pair"].item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(KeyError, match=r"layers \[9\] were not pooled"):
        TGA((9,)).losses(oracle.spans, 0.0)


def test_weights_and_schedules_scale_their_own_term(oracle: GuideOracle) -> None:
    plain = located(oracle.spans.layers).losses(oracle.spans, 0.5)
    weighted = TGA(
        oracle.spans.layers,
        pair_weight=3.0,
        rank_weight=2.0,
        pair_schedule="linear_decay",
        rank_schedule="quadratic_decay",
    ).losses(oracle.spans, 0.5)
    torch.testing.assert_close(weighted["tga_pair"], plain["tga_pair"] * 1.5)
    torch.testing.assert_close(weighted["tga_rank"], plain["tga_rank"] * 0.5)


@pytest.mark.parametrize(
    ("progress", "pair", "rank"), [(0.0, 0.0, 0.0), (0.1, 1.35, 1.0), (0.2, 2.4, 2.0), (0.5, 1.5, 2.0)]
)
def test_a_warm_up_lets_both_terms_grow_beside_their_schedules(
    oracle: GuideOracle, progress: float, pair: float, rank: float
) -> None:
    """Weight 3 fading linearly and weight 2 constant, over a warm-up of a fifth of the steps."""
    plain = located(oracle.spans.layers).losses(oracle.spans, progress)
    weights = {"pair_weight": 3.0, "rank_weight": 2.0, "pair_schedule": "linear_decay"}
    grown = TGA(oracle.spans.layers, warmup=0.2, **weights).losses(oracle.spans, progress)  # type: ignore[arg-type]
    torch.testing.assert_close(grown["tga_pair"], plain["tga_pair"] * pair)
    torch.testing.assert_close(grown["tga_rank"], plain["tga_rank"] * rank)


def test_the_centre_is_taken_off_all_three_sides_in_the_order_of_the_layers(oracle: GuideOracle) -> None:
    spans = oracle.spans
    centre = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift = centre.unsqueeze(1)
    moved = dataclasses.replace(
        spans, image=spans.image + shift, caption=spans.caption + shift, retrieved=spans.retrieved + shift
    )
    order = (3, 1)
    centred = TGA(order, centre=centre[[2, 0]])
    torch.testing.assert_close(total(centred, moved), total(TGA(order), spans), rtol=1e-12, atol=0)
    assert abs(total(TGA(order), moved) - total(centred, moved)) > 0.01
    with pytest.raises(ValueError, match=r"centre must be \[2, width\]"):
        TGA(order, centre=centre)


def test_cosines_of_low_precision_states_are_float32(oracle: GuideOracle) -> None:
    spans = oracle.spans
    low = dataclasses.replace(spans, image=spans.image.bfloat16(), caption=spans.caption.bfloat16(), retrieved=None)
    loss = located(spans.layers).losses(low, 0.0)["tga_pair"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-oracle.values["cos_image_caption"].mean(), abs=5e-3)


def test_perfect_alignment_reaches_the_minimum() -> None:
    vector = torch.randn(1, 1, 8)
    spans = Spans((0,), vector, vector * 2, -vector, torch.tensor([True]), torch.tensor([True]))
    losses = located([0]).losses(spans, 0.0)
    assert losses["tga_pair"].item() == pytest.approx(-1.0, abs=1e-6)
    assert losses["tga_rank"].item() == pytest.approx(math.log1p(math.exp(-2.0)), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": "max"}, "Unknown reduction of TGA. Given: max. Allowed: sum, mean"),
        ({"form": "square"}, "Unknown form of TGA. Given: square. Allowed: log, exp"),
        ({"pair_schedule": "cosine"}, "Allowed: constant, linear_decay, quadratic_decay"),
        ({"layers": ()}, "at least one layer"),
        ({"warmup": 1.5}, "warm-up must be a share of the steps. Given: 1.5. Allowed: 0 to 1"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TGA(**{"layers": (1,), **arguments})


@pytest.mark.parametrize("size", [1e-9, 3e-5, 1.0, 1e9])
def test_a_cosine_does_not_depend_on_the_length_of_its_vectors(size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    torch.testing.assert_close(cosine((a * size).float(), (b * size).float()).double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["log", "exp", "contrastive"])
def test_a_state_of_zero_has_a_cosine_and_a_gradient_of_zero(form: str) -> None:
    generator = torch.Generator().manual_seed(2)
    image, caption, retrieved = (torch.randn(1, 3, 4, generator=generator) for _ in range(3))
    image[:, 0] = 0
    image.requires_grad_()
    present = torch.ones(3, dtype=torch.bool)
    spans = Spans((0,), image, caption, retrieved, present, present)
    sum(TGA((0,), form=form).losses(spans, 0.0).values(), torch.zeros(())).backward()
    assert torch.equal(image.grad[:, 0], torch.zeros(1, 4))
    assert torch.isfinite(image.grad).all() and (image.grad[:, 1:] != 0).any()
    assert cosine(image, caption)[0, 0] == 0
