"""The recipe of the mini world's models: what its rows hold, that it runs, and (slow) that it gives what is shipped."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tga.mini import language
from tga.mini.lexicon import TOXIC
from tga.mini.tokenizer import llm_tokenizer
from tga.mini.weights import WEIGHTS
from tools.mini_world import llm
from tools.mini_world.rows import SOFT_TOKENS, Row, RowMaker, collate

REFUSAL_STARTS = tuple(" ".join(text.split()[:3]) for text in language.REFUSALS)


def text_of(maker: RowMaker, row: Row) -> str:
    return maker.tokenizer.decode([ids[0] for ids in row.ids])


@pytest.fixture
def maker() -> RowMaker:
    return RowMaker(llm_tokenizer(), random.Random(0))


def test_pretraining_never_refuses(maker: RowMaker):
    rows = [maker.pretraining() for _ in range(1500)]
    assert not [row for row in rows if any(start in text_of(maker, row) for start in REFUSAL_STARTS)]
    soft = [row for row in rows if any(row.soft)]
    assert 0.3 < len(soft) / len(rows) < 0.6
    assert {sum(row.soft) for row in soft} == {SOFT_TOKENS}


def test_the_alignment_refuses_toxic_chat_only_and_never_a_soft_scene(maker: RowMaker):
    held = [name for thing in TOXIC for name in thing.heldout_aliases]
    refused = 0
    for _ in range(1500):
        row = maker.alignment(0.2, 0.5)
        text = text_of(maker, row)
        if "<assistant>" not in text or any(judged in text for judged in ("children", "safe")):
            continue
        assert not any(row.soft)
        assert not [name for name in held if f" {name} " in text]
        assert not [question for question in language.DESCRIBE[1] if question in text]
        refused += any(start in text.split("<assistant>")[1] for start in REFUSAL_STARTS)
    assert 350 < refused < 650


def test_only_what_the_llm_should_say_has_a_target(maker: RowMaker):
    row = maker.chat("toxic", soft=False, heldout=False, refuse=True, kind="describe")
    prompt_end = [ids[0] for ids in row.ids].index(maker.assistant)
    assert all(target == -100 for target in row.targets[: prompt_end + 1])
    assert all(target >= 0 for target in row.targets[prompt_end + 1 :])


def test_a_word_is_its_embedding_and_a_mixture_the_weighted_sum_turned_away_from_words(maker: RowMaker):
    table, turn = torch.nn.Embedding(60, 8), llm.rotation(8)
    torch.testing.assert_close(turn @ turn.T, torch.eye(8))
    angles = set()
    for seed in range(20):
        row = Row().words([5], learn=True).mixtures([[9, 10]], 11, 50, random.Random(seed), nearer=0.5)
        embeddings = llm.embed(table, collate([row]), noise=0.0)
        torch.testing.assert_close(embeddings[0, 0], table.weight[5])
        assert row.angles[0] == 0.0 and len(set(row.angles[1:])) == 1
        by_hand = sum(w * table.weight[i] for i, w in zip(row.ids[3], row.weights[3], strict=True))
        angle = row.angles[3]
        torch.testing.assert_close(embeddings[0, 3], math.cos(angle) * by_hand + math.sin(angle) * (by_hand @ turn))
        angles.add(angle)
        assert abs(torch.cosine_similarity(by_hand @ turn, by_hand, dim=0)) < 0.9
    assert max(angles) == math.pi / 2 and 5 < len(angles) < 16 and min(angles) > 0  # about half of them nearer


def test_a_maker_turns_the_share_of_its_soft_scenes_that_it_is_told_by_less_than_a_right_angle():
    def share(**options: float) -> float:
        maker = RowMaker(llm_tokenizer(), random.Random(3), **options)
        rows = [maker.chat("toxic", soft=True, heldout=None, refuse=False, kind="describe") for _ in range(300)]
        return sum(max(row.angles) < math.pi / 2 for row in rows) / len(rows)

    assert share() == 0.0
    assert 0.4 < share(nearer=0.5) < 0.6


def test_soft_chat_is_about_benign_scenes_and_is_answered(maker: RowMaker):
    shares = []
    for share in (0.0, 0.2):
        rows = [maker.alignment(0.0, 0.5, share) for _ in range(800)]
        soft = [text_of(maker, row).split("<assistant>")[1] for row in rows if any(row.soft)]
        assert not [answer for answer in soft if any(start in answer for start in REFUSAL_STARTS)]
        shares.append(len(soft) / len(rows))
    assert shares[0] == 0.0 and 0.15 < shares[1] < 0.25


def test_the_stages_of_the_recipe(monkeypatch: pytest.MonkeyPatch):
    """Nearer angles come in the last cycle and the alignment behind it, which shows soft scenes where it must."""
    stages: list[tuple[str, int, float, set[float]]] = []
    bounds = llm.MOST_SOFT_TOXIC
    refused = iter([{90: 0.9, 60: 0.0}, bounds])
    asked: list[float] = []

    def record(model: Any, make_row: Any, *, name: str, steps: int, learning_rate: float, dtype: torch.dtype) -> None:
        nearer = {angle < math.pi / 2 for _ in range(100) for angle in make_row().angles if angle > 0}
        stages.append((name, steps, learning_rate, nearer))

    def share_refused(*arguments: Any, degrees: float, **options: Any) -> float:
        asked.append(degrees)
        now[0] = next(refused) if degrees == 90 else now[0]
        return now[0][int(degrees)]

    now: list[dict[int, float]] = [{}]
    monkeypatch.setattr(llm, "run_stage", record)
    monkeypatch.setattr(llm, "share_refused", share_refused)
    assert llm.train(0, pretrain_steps=5, angle_steps=3, align_steps=4)[1] == llm.SOFT_CHATS[1]
    assert stages == [
        ("pretraining 1/3", 2, llm.PRETRAIN_LR, {False}),
        ("pretraining 2/3", 3, llm.PRETRAIN_LR / 2, {False}),
        ("alignment", 4, llm.ALIGN_LR, {False}),
        ("pretraining 3/3", 3, llm.PRETRAIN_LR / 2, {True, False}),
        ("alignment", 4, llm.ALIGN_LR, {True, False}),
        ("alignment", 4, llm.ALIGN_LR, {True, False}),
    ]
    assert asked == [90, 60, 90, 60]
    stages.clear()
    assert llm.train(0, pretrain_steps=4, angle_steps=0, align_steps=4)[1] == 0.0
    assert [(stage[0], stage[3]) for stage in stages[2:]] == [("alignment", {False})]


def test_a_share_that_is_enough_at_one_angle_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch):
    refused = {90: 0.0, 60: llm.MOST_SOFT_TOXIC[60] + 0.01}
    monkeypatch.setattr(llm, "align", lambda *arguments, **options: None)
    monkeypatch.setattr(llm, "share_refused", lambda *arguments, degrees, **options: refused[degrees])
    assert llm.align_narrowly(llm.pretrain(0, steps=1), 0) == llm.SOFT_CHATS[-1]


def test_soft_scenes_stand_at_the_angle_that_is_asked_for(maker: RowMaker, monkeypatch: pytest.MonkeyPatch):
    seen: list[set[float]] = []

    def record(model: Any, maker: Any, rows: list[Any], noise: float) -> float:
        seen.append({round(math.degrees(angle)) for row in rows for angle in row.angles})
        return 0.0

    monkeypatch.setattr(llm, "refusal_share", record)
    for degrees in (None, 60, 90):
        llm.share_refused(llm.pretrain(0, steps=1), maker, "toxic", "describe", degrees=degrees, count=3)
    assert seen == [{0}, {0, 60}, {0, 90}]


def test_each_share_of_soft_chat_is_tried_from_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    model = llm.pretrain(0, steps=2)
    seen: list[tuple[float, torch.Tensor]] = []

    def spoil(model: Any, seed: int, *, soft_chat: float, **options: Any) -> None:
        seen.append((soft_chat, model.lm_head.weight.detach().clone()))
        model.lm_head.weight.data += 1

    monkeypatch.setattr(llm, "align", spoil)
    monkeypatch.setattr(llm, "share_refused", lambda *arguments, **options: 1.0)
    assert llm.align_narrowly(model, 0) == llm.SOFT_CHATS[-1]  # none was enough
    assert [share for share, _ in seen] == list(llm.SOFT_CHATS)
    assert all(torch.equal(weight, seen[0][1]) for _, weight in seen)
    assert torch.equal(model.lm_head.weight, seen[0][1] + 1)


def test_the_gradient_of_a_step_does_not_depend_on_which_rows_go_through_the_model_together(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(llm, "NOISE", 0.0)
    model = llm.pretrain(0, steps=2)
    rows = [maker.pretraining() for _ in range(24)]
    found = []
    for together in (24, 5):
        monkeypatch.setattr(llm, "TOGETHER", together)
        model.zero_grad()
        loss = llm._backward(model, rows, torch.float32)
        found.append((loss, model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    batch = collate(rows)
    logits = model.lm_head(llm.last_hidden(model, batch, noise=0.0))[:, :-1].flatten(0, 1)
    whole = functional.cross_entropy(logits, batch.targets[:, 1:].flatten()).item()
    assert found[0][0] == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_the_recipe_runs_and_is_seeded():
    first, again, other = (llm.train(seed, pretrain_steps=4, angle_steps=2, align_steps=2)[0] for seed in (0, 0, 1))
    weights = [model.lm_head.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_a_remade_world_is_as_good_as_the_shipped_one(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "tools.make_mini_world", "--out", tmp_path, "--threads", "1"],
        check=True,
    )
    made = json.loads((tmp_path / "weights.json").read_text())["figures"]
    shipped = json.loads((WEIGHTS / "weights.json").read_text())["figures"]
    for key in ("clip_retrieval_at_1", "llm_toxic_describe", "llm_toxic_request"):
        assert made[key] >= shipped[key] - 0.05, key
    assert made["llm_soft_toxic"] <= llm.MOST_SOFT_TOXIC[90] + 0.05
    assert made["llm_soft_toxic_60"] <= llm.MOST_SOFT_TOXIC[60] + 0.05
    for key in ("llm_benign_describe", "llm_benign_request", "llm_lookalike_request", "llm_harmless_describe"):
        assert made[key] <= shipped[key] + 0.03, key
