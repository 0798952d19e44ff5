"""ReGap against the float64 oracle and finite differences; its weight against an independent moving average."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tga.alignment.objective import Spans, StatefulObjective, TokenSpans
from tga.alignment.regap import ReGap, log_norm_ratios, mean_to_mean, pairwise
from tga.errors import UserError
from tga.vlm.spans import pack_tokens

ROOT = Path(__file__).resolve().parents[2]
ORACLE = dict(np.load(ROOT / "tests" / "data" / "regap.npz"))
KINDS = [("mean_to_mean", False), ("mean_to_mean", True), ("pairwise", False), ("pairwise", True)]


def packed(vision: Tensor) -> TokenSpans:
    text = torch.from_numpy(ORACLE["text"])
    masks = [torch.from_numpy(ORACLE[name]) for name in ("vision_mask", "text_mask")]
    return TokenSpans(*pack_tokens(vision, masks[0]), *pack_tokens(text, masks[1]))


def spans(tokens: TokenSpans, present: list[bool] | None = None) -> Spans:
    size = len(tokens.image)
    none, has = torch.zeros(0, size, 0), torch.tensor(present if present is not None else [True] * size)
    return Spans((), none, none, None, has, has, tokens={0: tokens})


def oracle_spans(scale: float = 1.0) -> Spans:
    return spans(packed(torch.from_numpy(ORACLE["vision"]) * scale))


def slow_gap(pairing: str, squared: bool) -> np.ndarray:
    """Sample by sample in NumPy, `[batch]`."""
    power, found = (2 if squared else 1), []
    for vision, seen, text, said in zip(
        *(ORACLE[k] for k in ("vision", "vision_mask", "text", "text_mask")), strict=True
    ):
        v, t = vision[seen], text[said]
        if pairing == "mean_to_mean":
            found.append(np.linalg.norm(v.mean(axis=0) - t.mean(axis=0)) ** power)
        else:
            found.append(np.mean([np.linalg.norm(a - b) ** power for a in v for b in t]))
    return np.array(found)


@pytest.mark.parametrize("pairing", ["mean_to_mean", "pairwise"])
def test_the_gap_equals_the_oracle(pairing: str) -> None:
    loss = ReGap(pairing=pairing, weight=1.0).losses(oracle_spans(), 0.0)["regap"]
    assert loss.item() == pytest.approx(float(ORACLE[pairing]), rel=1e-12)


@pytest.mark.parametrize(("pairing", "squared"), KINDS)
def test_every_gap_equals_a_slow_one(pairing: str, squared: bool) -> None:
    function = mean_to_mean if pairing == "mean_to_mean" else pairwise
    tokens = oracle_spans().tokens[0]
    np.testing.assert_allclose(function(tokens, squared=squared).numpy(), slow_gap(pairing, squared), rtol=1e-12)


@pytest.mark.parametrize(("pairing", "squared"), KINDS)
def test_the_gradient_passes_gradcheck(pairing: str, squared: bool) -> None:
    objective = ReGap(pairing=pairing, squared=squared, weight=0.7)

    def loss(vision: Tensor) -> Tensor:
        return objective.losses(spans(packed(vision)), 0.0)["regap"]

    assert torch.autograd.gradcheck(loss, (torch.from_numpy(ORACLE["vision"]).clone().requires_grad_(),))


@pytest.mark.parametrize(("pairing", "squared"), KINDS)
def test_image_tokens_on_the_caption_have_no_gap_and_a_finite_gradient(pairing: str, squared: bool) -> None:
    vectors = torch.randn(1, 3, 5, dtype=torch.float64)
    image = vectors.clone().requires_grad_()
    one = torch.ones(1, 3, dtype=torch.bool)
    objective = ReGap(pairing=pairing, squared=squared, weight=1.0)
    objective.losses(spans(TokenSpans(image, one, vectors, one)), 0.0)["regap"].backward()
    assert image.grad is not None and bool(torch.isfinite(image.grad).all())
    if pairing == "mean_to_mean":
        assert not image.grad.any()


def test_what_stands_outside_the_masks_has_no_influence() -> None:
    poisoned = np.where(ORACLE["vision_mask"][..., None], ORACLE["vision"], np.nan)
    vision = torch.from_numpy(poisoned).requires_grad_()
    loss = ReGap(weight=1.0).losses(spans(packed(vision)), 0.0)["regap"]
    assert loss.item() == pytest.approx(float(ORACLE["pairwise"]), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, vision)
    assert bool(torch.isfinite(gradient).all()) and not gradient[~torch.from_numpy(ORACLE["vision_mask"])].any()


def test_the_mean_is_over_samples_with_a_pair_and_zero_without() -> None:
    tokens = oracle_spans().tokens[0]
    one = ReGap(weight=2.0).losses(spans(tokens, [False, True, False]), 0.0)["regap"]
    assert one.item() == pytest.approx(2 * slow_gap("pairwise", False)[1], rel=1e-12)
    vision = torch.from_numpy(ORACLE["vision"]).requires_grad_()
    nothing = ReGap(weight=2.0).losses(spans(packed(vision), [False] * 3), 0.0)["regap"]
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, vision)[0].any()


def test_float32_keeps_the_digits_of_long_vectors() -> None:
    """Vectors of length 1000 at distance 1: the plain product of matrices would be off by several percent."""
    generator = torch.Generator().manual_seed(0)
    start = 1000 * torch.nn.functional.normalize(torch.randn(64, generator=generator, dtype=torch.float64), dim=0)
    image = start + torch.randn(1, 9, 64, generator=generator, dtype=torch.float64) / 8
    text = start + torch.randn(1, 7, 64, generator=generator, dtype=torch.float64) / 8
    masks = torch.ones(1, 9, dtype=torch.bool), torch.ones(1, 7, dtype=torch.bool)
    expected = (image[0, :, None] - text[0, None]).norm(dim=-1).mean()
    found = pairwise(TokenSpans(image.float(), masks[0], text.float(), masks[1]), squared=False)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_norm_ratio_tells_shrinking_from_aligning() -> None:
    expected = [
        np.log(np.linalg.norm(v[a], axis=1).mean() / np.linalg.norm(t[b], axis=1).mean())
        for v, a, t, b in zip(*(ORACLE[k] for k in ("vision", "vision_mask", "text", "text_mask")), strict=True)
    ]
    np.testing.assert_allclose(log_norm_ratios(oracle_spans().tokens[0]).numpy(), expected, rtol=1e-12)
    small = ReGap(weight=1.0).figures(oracle_spans(0.1))["regap_log_norm_ratio"]
    assert small.item() == pytest.approx(np.mean(expected) + np.log(0.1), rel=1e-12)


def test_alpha_is_the_ratio_of_the_moving_averages_and_then_stays() -> None:
    objective = ReGap(pairing="mean_to_mean", ratio=0.5, warmup=0.3, decay=0.9)
    assert isinstance(objective, StatefulObjective)
    gap, lm_mean, gap_mean = float(ORACLE["mean_to_mean"]), 0.0, 0.0
    for step in range(10):
        lm, tokens = 3.0 - 0.1 * step, oracle_spans(1.0 + step)
        objective.observe(torch.tensor(lm, dtype=torch.float64), tokens, step / 10)
        if step < 3:
            seen = mean_to_mean(tokens.tokens[0], squared=False).mean().item()
            lm_mean, gap_mean = 0.9 * lm_mean + 0.1 * lm, 0.9 * gap_mean + 0.1 * seen
            assert objective.alpha == 0.0
            assert objective.losses(oracle_spans(), step / 10)["regap"].item() == 0.0
        else:
            # Both averages start from zero: the correction for that is the same factor on both sides of the ratio.
            corrected = (lm_mean / (1 - 0.9**3)) / (gap_mean / (1 - 0.9**3))
            assert objective.alpha == pytest.approx(0.5 * corrected, rel=1e-12)
    assert objective.losses(oracle_spans(), 0.9)["regap"].item() == pytest.approx(objective.alpha * gap, rel=1e-12)


def test_without_a_warm_up_the_first_step_decides() -> None:
    objective = ReGap(warmup=0.0)
    for step, lm in enumerate((2.0, 5.0)):
        objective.observe(torch.tensor(lm), oracle_spans(), step / 10)
    assert objective.alpha == pytest.approx(2.0 / float(ORACLE["pairwise"]), rel=1e-12)


def test_a_batch_of_text_alone_leaves_the_averages() -> None:
    objective = ReGap(warmup=0.0)
    objective.observe(torch.tensor(9.0), spans(oracle_spans().tokens[0], [False] * 3), 0.0)
    assert objective.state_dict()["lm_mean"] == 0.0
    figures = objective.figures(spans(oracle_spans().tokens[0], [False] * 3))
    assert figures["regap_alpha"].item() == 0.0
    assert torch.isnan(figures["regap_gap"]) and torch.isnan(figures["regap_log_norm_ratio"])


def test_a_given_weight_needs_neither_warm_up_nor_lm_loss() -> None:
    objective = ReGap(weight=0.25)
    objective.observe(None, oracle_spans(), 0.0)
    assert objective.alpha == 0.25
    with pytest.raises(UserError, match=r"alignment\.regap\.weight=NUMBER"):
        ReGap().observe(None, oracle_spans(), 0.0)


def test_the_state_continues_exactly_and_belongs_to_one_gap() -> None:
    whole, half = ReGap(warmup=0.5), ReGap(warmup=0.5)
    for step in range(8):
        lm = torch.tensor(2.0 / (step + 1))
        whole.observe(lm, oracle_spans(1 + step), step / 8)
        if step == 2:
            half = ReGap(warmup=0.5)
            half.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        elif step > 2:
            half.observe(lm, oracle_spans(1 + step), step / 8)
    assert half.state_dict() == whole.state_dict() and half.alpha > 0
    with pytest.raises(UserError, match="another gap"):
        ReGap(squared=True).load_state_dict(whole.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairing": "nearest"}, "Unknown pairing of ReGap. Given: nearest. Allowed: pairwise, mean_to_mean"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"warmup": 1.0, "decay": -0.1}, "warmup=1.0.*decay=-0.1"),
        ({"weight": -1.0}, "weight=-1.0"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReGap(**arguments)


PROCESS = """
import sys, torch
from torch import distributed
from tests.alignment.test_regap import ORACLE, oracle_spans, spans
from tga.alignment.regap import ReGap
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
objective = ReGap(warmup=0.5)
for step in range(6):
    there = oracle_spans(1 + rank + step)
    if rank == 1 and step == 1:
        there = spans(there.tokens[0], [False] * 3)
    objective.observe(torch.tensor(1.0 + rank), there, step / 6)
print(repr(objective.alpha))
"""


@pytest.mark.slow
def test_two_processes_have_one_alpha(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting")] for rank in (0, 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(c, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for c in commands]
    alphas = [float(process.communicate(timeout=120)[0]) for process in both]
    lm_mean = gap_mean = 0.0
    for step in range(3):
        ranks = [0] if step == 1 else [0, 1]
        gaps = [pairwise(oracle_spans(1 + rank + step).tokens[0], squared=False).mean().item() for rank in ranks]
        lm_mean = 0.98 * lm_mean + 0.02 * np.mean([1.0 + rank for rank in ranks])
        gap_mean = 0.98 * gap_mean + 0.02 * np.mean(gaps)
    assert alphas == pytest.approx([lm_mean / gap_mean] * 2, rel=1e-12)


@pytest.mark.parametrize(("pairing", "squared"), KINDS)
def test_a_common_offset_costs_float32_few_digits(pairing: str, squared: bool) -> None:
    """States of a language model share a large component, a gap of 0.1 at an offset of 1000 came out negative."""
    generator = torch.Generator().manual_seed(0)
    image, caption = (0.1 * torch.randn(3, n, 16, generator=generator, dtype=torch.float64) + 1000 for n in (5, 4))
    masks = torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)
    masks[0][1, 3:], masks[1][2, 2:] = False, False
    gap = {"pairwise": pairwise, "mean_to_mean": mean_to_mean}[pairing]
    exact = []
    for row in range(3):
        v, t = image[row][masks[0][row]], caption[row][masks[1][row]]
        pairs = torch.cdist(v, t) if pairing == "pairwise" else (v.mean(dim=0) - t.mean(dim=0)).norm()
        exact.append((pairs**2 if squared else pairs).mean())
    single = [states.float().double() for states in (image, caption)]  # rounding the states is not the gap's doing
    rounded = [pack_tokens(states.float(), mask) for states, mask in zip(single, masks, strict=True)]
    found = gap(TokenSpans(*rounded[0], *rounded[1]), squared=squared)
    torch.testing.assert_close(found.double(), torch.stack(exact), rtol=5e-3, atol=1e-3)
    assert (found > 0).all()
