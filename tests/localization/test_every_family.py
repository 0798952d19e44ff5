"""Every family, on a tiny random model of its real class: edges that are cut, states that are added, all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_families import FAMILIES, LAYERS, TEMPLATE, made, write_pictures
from tga.cli.locate_config import Asked
from tga.cli.locate_job import Job
from tga.cli.locate_source import Subject
from tga.cli.locate_stages import draw_figure2, draw_figure3, draw_figure4, draw_figure5, locate
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.localization.addition import added_states
from tga.localization.attention import attention_shares, eager_attention
from tga.localization.knockout import attention_knockout
from tga.localization.prompts import TextBatch, text_batches, text_prompt
from tga.vlm.families import component, family_of, image_token_id
from tga.vlm.hidden_states import capture_hidden_states

every_family = pytest.mark.parametrize("name", FAMILIES)
MESSAGES = [("How many cats sit there?", "cats"), ("Is the dog on the blue chair red?", "blue chair"), ("A cup", "cup")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def texts(name: str) -> TextBatch:
    """The messages as one batch for the family's tokenizer."""
    model, processor = made(name)
    prompts = [
        text_prompt(processor.tokenizer, word, message, [word], template=TEMPLATE[name], image_token="<no picture>")
        for message, word in MESSAGES
    ]
    (batch,) = text_batches(prompts, batch_size=9, tokenizer=processor.tokenizer, device=model.device)
    return batch


@torch.no_grad()
def run(model: Any, batch: TextBatch) -> Tensor:
    mask = batch.attention_mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    language_model = component(model, family_of(model).language_model)
    given = {"input_ids": batch.input_ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
    return language_model(**given).last_hidden_state


@every_family
def test_a_cut_edge_has_exactly_zero_attention(name: str) -> None:
    model, _ = made(name)
    family, batch = family_of(model), texts(name)
    before = run(model, batch)
    seen: list[Tensor] = []
    hook = component(model, family.decoder_layers)[1].self_attn.register_forward_hook(  # type: ignore[index]
        lambda _m, _a, output: seen.append(output[1])
    )
    with eager_attention(model, family), attention_knockout(model, family, [2], batch.toxic):
        run(model, batch)
    hook.remove()
    (weights,) = seen
    places = torch.arange(weights.shape[-1])
    later = places[:, None] > places[None, :]
    cut = batch.toxic[:, None, :] & ~batch.toxic[:, :, None] & later
    assert bool((weights.transpose(0, 1)[:, cut] == 0).all())
    last = weights[:, :, -1]
    torch.testing.assert_close(last.sum(-1), torch.ones_like(last[..., 0]))
    kept = batch.attention_mask.bool() & ~batch.toxic
    assert bool((last.transpose(0, 1)[:, kept] > 0).all())
    assert torch.equal(run(model, batch), before)
    ((_, shares, even),) = attention_shares(model, family, [batch])
    assert shares.shape == (LAYERS, 3) and bool((shares > 0).all() and (shares < 1).all() and (even > 0).all())
    assert torch.equal(run(model, batch), before)


@every_family
@torch.no_grad()
def test_states_are_added_to_the_image_tokens_alone(name: str, pictures: dict[str, Path]) -> None:
    model, processor = made(name)
    family = family_of(model)
    questions = [Question(key, "", "What is it?", "chat", image=path) for key, path in pictures.items()]
    templates = {"chat_template": TEMPLATE[name], "plain_template": TEMPLATE[name]}
    rows = prompt_rows(model, processor, family, questions, **templates)
    batch = prompt_batch(model, processor, family, rows, list(pictures.values()), padding_side="left")
    places, vector = batch.input_ids == image_token_id(model, family), torch.linspace(-1, 1, 32)
    states = []
    for chosen in ({}, {3: vector}):
        with added_states(model, family, chosen, places), capture_hidden_states(model, family, [3]) as captured:
            model(**batch.model_inputs())
        states.append(captured[3])
    plain, changed = states
    assert places.any() and torch.equal(changed[~places], plain[~places])
    torch.testing.assert_close(changed[places] - plain[places], vector.expand(int(places.sum()), -1), atol=1e-5, rtol=0)


@every_family
def test_all_stages(name: str, pictures: dict[str, Path], tmp_path: Path) -> None:
    model, processor = made(name)
    model.requires_grad_(False)
    subject = Subject(name, model, processor.tokenizer, processor, family_of(model))
    words = [Question(word, "", message, "chat", toxic=(word,)) for message, word in MESSAGES]
    shown = [Question(key, "", "What?", "chat", image=path, caption=f"A {key} one.") for key, path in pictures.items()]
    settings = {
        "openings": ["Sorry", "I am sorry", "The", "A"], "ordinary_openings": [], "variant": "released", "window": 2,
        "contrast_share": 0.5, "layers_from": "band", "stride": 1, "toxic_tokens": "marked", "added_scale": 1.0,
    }  # fmt: skip
    evaluation = {"chat_template": TEMPLATE[name], "plain_template": TEMPLATE[name], "batch_size": 2, "seed": 0}
    asked = Asked(words, words[:1], shown, shown[:1], shown)
    job = Job(subject, asked, settings, {**evaluation, "max_new_tokens": 3}, tmp_path)
    found, values = locate(job)
    for stage in (draw_figure2, draw_figure3, draw_figure5):
        values |= stage(job, found.band)
    values |= draw_figure4(job, found.band, None)
    assert values["toxic_prompts"] == values["text_dsr_n"] == values["dsr_blocked_window_2_3_n"] == 3
    assert values["image_dsr_n"] == len(pictures) and values["over_refusal_n"] == 1
    drawn = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"activation.png", "figure2.png", "figure3.png", "figure4.png", "figure5.png"}
