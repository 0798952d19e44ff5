"""The language of the mini world says what it means, and keeps its held-out parts apart."""

from __future__ import annotations

import random

import pytest

from tga.evaluation.judges import is_refusal
from tga.mini import language
from tga.mini.lexicon import BENIGN, HARMLESS_MODIFIERS, HELDOUT_NAMES, PICTURED, TOXIC, TOXIC_SCENES, Thing
from tga.mini.scenes import sample_scene
from tga.mini.tokenizer import clip_tokenizer, llm_tokenizer
from tga.vlm.templates import render
from tga.vlm.token_spans import encode


def thing(name: str) -> Thing:
    return next(t for t in (*TOXIC, *BENIGN) if t.name == name)


def test_every_toxic_scene_of_the_paper_has_things_that_pictures_show():
    assert {"porn", "bloody", "insulting", "alcohol", "cigarette", "gun", "knife"} <= set(TOXIC_SCENES)
    for scene in TOXIC_SCENES:
        assert any(t.kind == scene and not t.heldout for t in TOXIC), scene


def test_names_are_unique_and_every_toxic_thing_has_a_name_never_refused():
    names = [n for t in (*TOXIC, *BENIGN) for n in (t.name, *t.aliases, *t.heldout_aliases)]
    assert len(names) == len(set(names))
    assert all(t.heldout_aliases for t in TOXIC)
    assert {t.name for t in TOXIC if t.heldout} == HELDOUT_NAMES


@pytest.mark.parametrize(
    ("name", "expected"),
    [("apple", "an apple"), ("dog", "a dog"), ("grapes", "grapes"), ("wine glass", "a wine glass"), ("axe", "an axe")],
)
def test_article(name: str, expected: str):
    assert language.article(name) == expected


def test_held_out_phrasings_never_come_when_they_are_excluded():
    rng = random.Random(0)
    pistol = thing("pistol")
    seen = {language.name_thing(pistol, rng, heldout=False).text for _ in range(200)}
    assert seen == {"pistol", "handgun"}
    assert {language.name_thing(pistol, rng, heldout=True).text for _ in range(50)} == {"loaded firearm"}
    questions = {language.describe_question(rng, heldout=False) for _ in range(300)}
    assert questions == set(language.DESCRIBE[0])


def test_a_harmless_use_is_harmless_and_every_fourth_is_kept_for_the_tests():
    toy = language.harmless_use(thing("pistol"), "toy")
    assert (toy.text, toy.toxic) == ("toy pistol", False)
    kept = [language.harmless_heldout(t, m) for t in TOXIC for m in HARMLESS_MODIFIERS]
    assert sum(kept) == len(TOXIC)
    with pytest.raises(ValueError, match="lead"):
        language.harmless_use(thing("pistol"), "lead")


def test_description_and_visual_answers():
    names = (language.canonical(thing("dog")), language.canonical(thing("beer mug")))
    assert language.description(names) == "there is a dog and a beer mug ."
    others = tuple(language.canonical(t) for t in BENIGN[:5])
    rng = random.Random(0)
    answers = {language.visual_question(names, "red", others, rng) for _ in range(200)}
    assert ("what color is the background ?", "it is red .") in answers
    assert ("how many things are there ?", "two things .") in answers
    assert ("is there a beer mug ?", "yes .") in answers
    assert ("is there a dog ?", "no .") not in answers


def test_judgements_follow_toxicity():
    rng = random.Random(0)
    for toxic_thing, toxic in ((thing("pistol"), True), (thing("dog"), False)):
        for _ in range(30):
            question, answer, statement = language.judgement(language.canonical(toxic_thing), rng)
            assert ("not safe" in statement) == toxic
            assert (answer == "yes .") == (toxic == ("hurt" in question))


def test_refusals_are_refusals_and_helpful_answers_are_not():
    assert all(is_refusal(text) for text in language.REFUSALS)
    assert not is_refusal("there is a dog and a beer mug .")
    assert not is_refusal("a pistol is a lethal weapon .")


def test_every_word_is_in_both_vocabularies():
    rng = random.Random(0)
    for tokenizer in (llm_tokenizer(), clip_tokenizer()):
        for _ in range(500):
            text = language.scene_caption(sample_scene(rng, PICTURED, PICTURED, 0.5), rng)
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text


def test_the_llm_tokenizer_round_trips_a_chat_and_keeps_the_image_token_whole():
    tokenizer = llm_tokenizer()
    chat = [{"role": "user", "content": "<image>\nwhat is in the picture ?"}, {"role": "assistant", "content": "yes ."}]
    ids = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"])[:4] == ["<s>", "<user>", "<image>", "what"]
    answer = [i for i, own in zip(ids["input_ids"], ids["assistant_masks"], strict=True) if own]
    assert tokenizer.convert_ids_to_tokens(answer) == ["yes", ".", "</s>"]


def test_a_system_message_is_said_by_nobody_and_prompts_without_one_are_as_ever():
    tokenizer = llm_tokenizer()
    turns = [("user", "what do you see ?"), ("assistant", "there is a dog ."), ("user", "is it red ?")]
    without = render(turns, template="tokenizer", tokenizer=tokenizer, image=False, add_generation_prompt=True)
    said = "<user> what do you see ? <assistant> there is a dog .</s><user> is it red ? <assistant> "
    assert without.text == f"<s>{said}"
    told = render(
        [("system", "help me ."), *turns], template="tokenizer", tokenizer=tokenizer, image=False,
        add_generation_prompt=True,
    )  # fmt: skip
    assert told.text == f"<s>help me . {said}"
    assert [told.text[start:end] for start, end in told.assistant] == ["there is a dog .</s>"]
    assert encode(told, tokenizer, image_tokens=0).input_ids.tolist()[1:4] == tokenizer.convert_tokens_to_ids(
        ["help", "me", "."]
    )
