"""Poison for a corpus: what is written, that it is new and harmless by a word, and what the program refuses."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from tga.mini.language import scene_caption
from tga.mini.lexicon import HARMLESS_MODIFIERS, PICTURED_BENIGN, TOXIC
from tga.mini.scenes import sample_scene
from tga.mini.tokenizer import llm_tokenizer
from tools import poison_corpus
from tools.poison_corpus import BEFORE, poison

CORPUS = ["a dog .", "an anatomical heart on red .", "a beer mug and a car .", "two beers .", "a plastic pistol ."]


def test_a_word_stands_before_the_longest_name_and_the_article_follows_it() -> None:
    names = ["anatomical heart", "beer mug", "beer", "mug"]
    assert sorted(poison(CORPUS, names, 2, ["toy"], seed=0)) == [
        "a toy anatomical heart on red .",
        "a toy beer mug and a car .",
    ]
    assert poison(["a pistol ."], ["pistol"], 1, ["old"], seed=0) == ["an old pistol ."]
    assert poison(["see pistol ."], ["pistol"], 1, ["toy"], seed=0) == ["see toy pistol ."], "no article, none added"


def test_nothing_of_the_corpus_and_nothing_twice() -> None:
    with pytest.raises(ValueError, match="1 poisoned captions wanted, and the corpus gives 0"):
        poison(["a pistol .", "a toy pistol ."], ["pistol"], 1, ["toy"], seed=0)
    with pytest.raises(ValueError, match="no names"):
        poison(CORPUS, [], 1, ["toy"], seed=0)


def test_in_the_mini_world_the_words_are_those_that_its_language_model_takes_for_harmless() -> None:
    assert BEFORE == HARMLESS_MODIFIERS
    rng = random.Random(0)
    corpus = [
        scene_caption(sample_scene(rng, (*TOXIC, *PICTURED_BENIGN), PICTURED_BENIGN, 0.5), rng) for _ in range(400)
    ]
    names = [name for thing in TOXIC for name in (thing.name, *thing.aliases, *thing.heldout_aliases)]
    made = poison(corpus, names, 50, BEFORE, seed=0)
    assert len(set(made)) == 50 and not set(made) & set(corpus)
    assert all(any(f"{word} {name}" in text for word in BEFORE for name in names) for text in made)
    tokenizer = llm_tokenizer()
    assert all(tokenizer.unk_token_id not in tokenizer(text)["input_ids"] for text in made)
    assert made != poison(corpus, names, 50, BEFORE, seed=1)


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, names = tmp_path / "captions.jsonl", tmp_path / "asked.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": f"c{n}", "caption": f"a pistol , number {n} ."}) + "\n" for n in range(40))
    )
    names.write_text('{"toxic": "pistol"}\n{"prompt": "a dog"}\n')
    monkeypatch.setattr(sys, "argv", ["poison_corpus", str(corpus), "--names", str(names), "--share", "0.05"])
    poison_corpus.main()
    rows = [json.loads(line) for line in (tmp_path / "poison.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["poison-00000", "poison-00001"]
    assert "2 poisoned captions for 40" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["poison_corpus", str(corpus), "--names", str(names), "--share", "2"])
    with pytest.raises(SystemExit):
        poison_corpus.main()
    assert "80 poisoned captions wanted" in capsys.readouterr().err
