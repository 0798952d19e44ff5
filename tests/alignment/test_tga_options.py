"""The contrastive form and the other targets of TGA against slow float64 computations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tga.alignment.objective import Spans
from tga.alignment.tga import TGA, info_nce
from tga.errors import UserError

LAYERS, BATCH, WIDTH = 2, 5, 6
HAS_PAIR = [True, True, False, True, True]
HAS_RETRIEVED = [True, False, True, True, False]
GROUP = [3, 1, 1, 3, 0]  # samples 0 and 3 have the same caption; 1 and 2 too, but 2 has no pair


def made_spans() -> Spans:
    generator = torch.Generator().manual_seed(0)
    image, caption, retrieved = torch.randn(3, LAYERS, BATCH, WIDTH, generator=generator, dtype=torch.float64)
    caption[:, 3], caption[:, 2] = caption[:, 0], caption[:, 1]
    groups = torch.tensor(GROUP), torch.tensor([0, 1, 2, 3, 4])
    return Spans((1, 2), image, caption, retrieved, torch.tensor(HAS_PAIR), torch.tensor(HAS_RETRIEVED), *groups)


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow_info_nce(image: np.ndarray, text: np.ndarray, present: list[bool], group: list[int], heat: float) -> float:
    """Mean over the samples present and the layers, one exponential at a time."""
    found = []
    for layer in range(LAYERS):
        for i in (i for i in range(BATCH) if present[i]):
            others = [j for j in range(BATCH) if present[j] and group[j] != group[i]]
            shares = {j: np.exp(cos(image[layer, i], text[layer, j]) / heat) for j in [i, *others]}
            found.append(-np.log(shares[i] / sum(shares.values())))
    return float(np.mean(found))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_contrastive_form_is_info_nce_without_false_negatives(temperature: float) -> None:
    spans = made_spans()
    objective = TGA((1, 2), pair_weight=3.0, rank_weight=0.0, form="contrastive", temperature=temperature)
    expected = slow_info_nce(spans.image.numpy(), spans.caption.numpy(), HAS_PAIR, GROUP, temperature)
    assert objective.losses(spans, 0.0)["tga_pair"].item() == pytest.approx(3 * expected, rel=1e-12)
    apart = dataclasses.replace(spans, caption_group=None)
    every = slow_info_nce(spans.image.numpy(), spans.caption.numpy(), HAS_PAIR, list(range(BATCH)), temperature)
    assert objective.losses(apart, 0.0)["tga_pair"].item() == pytest.approx(3 * every, rel=1e-12)
    assert every > expected


def test_the_contrastive_form_with_a_centre() -> None:
    spans = made_spans()
    centre = torch.randn(LAYERS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objective = TGA((1, 2), form="contrastive", temperature=0.2, centre=centre)
    sides = [(side - centre.unsqueeze(1)).numpy() for side in (spans.image, spans.caption)]
    expected = slow_info_nce(sides[0], sides[1], HAS_PAIR, GROUP, 0.2)
    assert objective.losses(spans, 0.0)["tga_pair"].item() == pytest.approx(expected, rel=1e-12)


def test_the_ranking_of_the_contrastive_form_is_that_of_the_log_form() -> None:
    spans = made_spans()
    ranks = [TGA((1, 2), form=form).losses(spans, 0.0)["tga_rank"] for form in ("log", "contrastive", "exp")]
    assert ranks[0] == ranks[1] != ranks[2]


def test_a_lone_pair_has_no_negatives_and_no_loss() -> None:
    spans = dataclasses.replace(made_spans(), has_pair=torch.tensor([True] + [False] * 4))
    image = spans.image.clone().requires_grad_()
    loss = TGA((1, 2), form="contrastive").losses(dataclasses.replace(spans, image=image), 0.0)["tga_pair"]
    assert loss.item() == 0.0 and not torch.autograd.grad(loss, image)[0].any()


@pytest.mark.parametrize("target", ["caption", "retrieved", "both"])
@pytest.mark.parametrize("form", ["log", "contrastive"])
def test_gradients_pass_gradcheck(form: str, target: str) -> None:
    objective, spans = TGA((1, 2), form=form, target=target, temperature=0.3), made_spans()

    def guide(image: Tensor) -> Tensor:
        return torch.stack(list(objective.losses(dataclasses.replace(spans, image=image), 0.0).values())).sum()

    assert torch.autograd.gradcheck(guide, (spans.image.clone().requires_grad_(),))


def test_info_nce_stays_float32_under_autocast() -> None:
    spans = made_spans()
    arguments = (spans.image.float(), spans.caption.float(), spans.has_pair, spans.caption_group, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(*arguments)
    assert found.dtype == torch.float32 and torch.equal(found, info_nce(*arguments))


def slow_pair(image: np.ndarray, text: np.ndarray, present: list[bool]) -> float:
    kept = [(layer, i) for layer in range(LAYERS) for i in range(BATCH) if present[i]]
    return float(np.mean([-cos(image[place], text[place]) for place in kept]))


def test_targets() -> None:
    spans = made_spans()
    image, caption, retrieved = spans.image.numpy(), spans.caption.numpy(), spans.retrieved.numpy()
    to_caption, to_retrieved = slow_pair(image, caption, HAS_PAIR), slow_pair(image, retrieved, HAS_RETRIEVED)
    losses = {target: TGA((1, 2), target=target).losses(spans, 0.0) for target in ("caption", "retrieved", "both")}
    assert losses["caption"]["tga_pair"].item() == pytest.approx(to_caption, rel=1e-12)
    assert losses["retrieved"]["tga_pair"].item() == pytest.approx(to_retrieved, rel=1e-12)
    assert losses["both"]["tga_pair"].item() == pytest.approx((to_caption + to_retrieved) / 2, rel=1e-12)
    assert losses["retrieved"]["tga_rank"].item() == 0.0
    assert losses["both"]["tga_rank"] == losses["caption"]["tga_rank"] != 0.0


def test_a_retrieved_target_without_any_retrieved_text_is_a_connected_zero() -> None:
    spans = dataclasses.replace(made_spans(), retrieved=None)
    image = spans.image.clone().requires_grad_()
    losses = TGA((1, 2), target="retrieved").losses(dataclasses.replace(spans, image=image), 0.0)
    assert losses["tga_pair"].item() == 0.0
    assert not torch.autograd.grad(losses["tga_pair"] + losses["tga_rank"], image)[0].any()


def test_the_retrieved_target_gets_no_gradient() -> None:
    spans = made_spans()
    image, retrieved = (side.clone().requires_grad_() for side in (spans.image, spans.retrieved))
    losses = TGA((1, 2), target="retrieved", retrieved_gradient=True).losses(
        dataclasses.replace(spans, image=image, retrieved=retrieved), 0.0
    )
    gradients = torch.autograd.grad(losses["tga_pair"], (image, retrieved), allow_unused=True)
    assert gradients[0].norm() > 0 and gradients[1] is None


def test_the_figure_is_the_cosine_whatever_the_form() -> None:
    spans = made_spans()
    found = TGA((2,), form="contrastive").figures(spans)["tga_cosine"].item()
    image, caption = spans.image[1].numpy(), spans.caption[1].numpy()
    assert found == pytest.approx(np.mean([cos(image[i], caption[i]) for i in (0, 1, 3, 4)]), rel=1e-12)
    none = dataclasses.replace(spans, has_pair=torch.zeros(BATCH, dtype=torch.bool))
    assert torch.isnan(TGA((2,)).figures(none)["tga_cosine"])


def test_the_retrieved_text_has_a_figure_of_its_own() -> None:
    spans = made_spans()
    assert spans.retrieved is not None
    both = (spans.has_pair & spans.has_retrieved).nonzero().flatten().tolist()
    retrieved, caption = spans.retrieved[1].numpy(), spans.caption[1].numpy()
    expected = np.mean([cos(retrieved[i], caption[i]) for i in both])
    figures = TGA((2,)).figures(spans)
    assert figures["tga_retrieved_cosine"].item() == pytest.approx(expected, rel=1e-12)
    assert figures["tga_retrieved_cosine"] != figures["tga_cosine"] and set(figures) == set(TGA((2,)).figure_names)
    without = TGA((2,)).figures(dataclasses.replace(spans, retrieved=None))
    assert torch.isnan(without["tga_retrieved_cosine"]) and without["tga_cosine"] == figures["tga_cosine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "image"}, "Unknown target of TGA. Given: image. Allowed: caption, retrieved, both"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TGA((1,), **arguments)
