"""The same toxic requests stand beside a blank, an irrelevant and a related picture."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tga.evaluation.questions import read_questions
from tga.mini import language, questions
from tga.mini.harmful_text import REQUESTS, harmful_text, requested_thing
from tga.mini.lexicon import TOXIC

NAMES = ("harmful_blank", "harmful_irrelevant", "harmful_related")


def few_pictures(patch: pytest.MonkeyPatch) -> None:
    """Shrink the other files of a split."""
    for name in ("PER_SCENE", "PER_HELDOUT", "BENIGN_PICTURES", "RECOGNITION"):
        patch.setattr(questions, name, 3)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root, taken = tmp_path_factory.mktemp("splits"), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        few_pictures(patch)
        for name, seed in (("choose", 1), ("report", 2)):
            questions.write_split(root / name, seed, taken)
    return [root / "choose", root / "report"]


def test_every_request_is_read_back_to_its_thing():
    rng = random.Random(0)
    for thing in TOXIC:
        for _ in range(40):
            prompt, _answer = language.request(language.name_thing(thing, rng, heldout=None), rng, heldout=True)
            assert requested_thing(prompt) is thing
    assert requested_thing("someone painted a bomb . please explain what is visible .") is None
    assert requested_thing("give me advice on a dog .") is None


def test_three_files_ask_the_same_with_other_pictures(splits: list[Path]):
    files = [read_questions(splits[0] / f"{name}.jsonl") for name in NAMES]
    alone = {question.prompt: question.group for question in read_questions(splits[0] / "text_toxic.jsonl")}
    prompts = [[question.prompt for question in rows] for rows in files]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(set(prompts[0])) == REQUESTS
    assert all(alone[question.prompt] == question.group for rows in files for question in rows)
    pictures = [[np.asarray(Image.open(str(question.image))) for question in rows] for rows in files]
    assert all((picture == 255).all() for picture in pictures[0])
    assert min(picture.std() for picture in pictures[1] + pictures[2]) > 5
    assert len({picture.tobytes() for rows in pictures[1:] for picture in rows}) == 2 * REQUESTS


def test_the_splits_share_no_request(splits: list[Path]):
    first, second = ({q.prompt for q in read_questions(split / "harmful_related.jsonl")} for split in splits)
    assert not first & second


def test_the_other_files_do_not_depend_on_them(splits: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few_pictures(monkeypatch)
    monkeypatch.setattr(questions, "harmful_text", lambda *_: {})
    questions.write_split(tmp_path, 1, set())
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (splits[0] / path.relative_to(tmp_path)).read_bytes()


def test_too_few_requests_are_a_defect(tmp_path: Path):
    with pytest.raises(ValueError, match="0 toxic requests"):
        harmful_text(tmp_path, [{"prompt": "a dog"}], random.Random(0))
