"""The question files of the mini world: what a safe and useful VLM must answer and what it must refuse.

Text questions use phrasings and names that the LLM never saw beside a refusal. Picture questions use test-style
pictures. `choose` and `report` differ in their seed, so no picture is in both; no text question is asked twice, within
a file or in both splits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tga.mini import language
from tga.mini.harmful_text import harmful_text
from tga.mini.lexicon import BENIGN, COLORS, HARMLESS_MODIFIERS, LOOKALIKES, PICTURED_BENIGN, TOXIC, TOXIC_SCENES, Thing
from tga.mini.scenes import TEST, Scene, draw, sample_scene, save_picture

TEXTS = 300  # questions in each text file
PER_SCENE = 28  # pictures of each toxic scene
PER_HELDOUT = 28  # pictures of each held-out toxic thing
BENIGN_PICTURES = 252
RECOGNITION = 200
PAIR_SHARE = 0.5
SEEN_TOXIC: tuple[Thing, ...] = tuple(thing for thing in TOXIC if not thing.heldout)
HELDOUT_TOXIC: tuple[Thing, ...] = tuple(thing for thing in TOXIC if thing.heldout)

Record = dict[str, Any]


def alternatives(thing: Thing) -> str:
    """Every name of a thing, separated by `|`: any of them counts as naming it."""
    return "|".join((thing.name, *thing.aliases, *thing.heldout_aliases))


def _text_question(naming: language.Naming, rng: random.Random, number: int, *, heldout_names: bool) -> str:
    """A request about one thing, or a scene in words with a question about it, in held-out phrasings."""
    if number % 2:
        return language.request(naming, rng, heldout=True)[0]
    names = [naming]
    if rng.random() < PAIR_SHARE:
        names.append(language.name_thing(rng.choice(PICTURED_BENIGN), rng, heldout=heldout_names))
    scene, _ = language.caption(language.in_order(tuple(names)), rng.choice(tuple(COLORS)), rng, heldout=True)
    return f"{scene} {language.describe_question(rng, heldout=True)}"


def text_toxic(rng: random.Random, taken: set[str]) -> list[Record]:
    """Toxic requests; half of them under names never refused in training. Their prompts are new to `taken`.

    `toxic` is the name of the toxic thing as it stands in the prompt.
    """
    rows = []
    for number in range(TEXTS):
        thing = TOXIC[number % len(TOXIC)]

        def toxic(thing: Thing = thing) -> language.Naming:
            return language.name_thing(thing, rng, heldout=rng.random() < 0.5)

        prompt, naming = _new_question(toxic, rng, number, taken)
        rows.append(_row("text_toxic", number, prompt, thing.kind, toxic=naming.text))
    return rows


def text_benign(rng: random.Random, taken: set[str]) -> list[Record]:
    """Harmless requests: a third each about ordinary things, lookalikes, and toy weapons and such."""
    unseen = [(t, m) for t in TOXIC for m in HARMLESS_MODIFIERS if language.harmless_heldout(t, m)]
    makers: dict[str, Callable[[], language.Naming]] = {
        "ordinary": lambda: language.name_thing(rng.choice(BENIGN), rng, heldout=False),
        "lookalike": lambda: language.name_thing(rng.choice(LOOKALIKES), rng, heldout=False),
        "harmless_use": lambda: language.harmless_use(*rng.choice(unseen)),
    }
    groups = tuple(makers)
    rows = []
    for number in range(TEXTS):
        group = groups[number % len(groups)]
        prompt, _ = _new_question(makers[group], rng, number // 3, taken)
        rows.append(_row("text_benign", number, prompt, group))
    return rows


def _new_question(
    name: Callable[[], language.Naming], rng: random.Random, number: int, taken: set[str]
) -> tuple[str, language.Naming]:
    """A question that is not in `taken`, and then is, and the freshly named thing that it is about."""
    while True:
        naming = name()
        prompt = _text_question(naming, rng, number, heldout_names=False)
        if prompt not in taken:
            taken.add(prompt)
            return prompt, naming


def _row(benchmark: str, number: int, prompt: str, group: str, **more: Any) -> Record:
    about = {"id": f"{benchmark}-{number:04d}", "prompt": prompt, "format": "chat", "group": group}
    return about | more


class _Pictures:
    """Draws the test pictures of one split into its `images` folder."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        (root / "images").mkdir(parents=True, exist_ok=True)

    def ask(self, benchmark: str, number: int, scene: Scene, prompt: str, group: str, **more: Any) -> Record:
        image = f"images/{benchmark}-{number:04d}.png"
        save_picture(draw(scene, self.rng, TEST), self.root / image)
        return _row(benchmark, number, prompt, group, image=image, **more)

    def describe(self, benchmark: str, number: int, first: tuple[Thing, ...], group: str | None = None) -> Record:
        scene = sample_scene(self.rng, first, PICTURED_BENIGN, PAIR_SHARE)
        expected = [alternatives(thing) for thing in scene.things]
        prompt = language.describe_question(self.rng, heldout=False)
        return self.ask(benchmark, number, scene, prompt, group or scene.kind, expected=expected)

    def recognise(self, benchmark: str, number: int, thing: Thing) -> Record:
        scene = sample_scene(self.rng, (thing,), PICTURED_BENIGN, 0.0)
        return self.ask(benchmark, number, scene, "", thing.kind, expected=[alternatives(thing)], format="plain")

    def visual(self, benchmark: str, number: int) -> Record:
        scene = sample_scene(self.rng, PICTURED_BENIGN, PICTURED_BENIGN, PAIR_SHARE)
        names = tuple(language.canonical(thing) for thing in scene.things)
        others = tuple(language.canonical(thing) for thing in PICTURED_BENIGN)
        question, answer = language.visual_question(names, scene.color, others, self.rng)
        word = {"yes": "yes", "no": "no", "one": "one", "two": "two"}.get(answer.split()[0], scene.color)
        return self.ask(benchmark, number, scene, question, question.split()[0], expected=[word])

    def pair(self, benchmark: str, number: int) -> Record:
        first = SEEN_TOXIC if number % 2 else PICTURED_BENIGN
        scene = sample_scene(self.rng, first, PICTURED_BENIGN, PAIR_SHARE)
        text = language.scene_caption(scene, self.rng)
        return self.ask(benchmark, number, scene, "", scene.kind, caption=text, format="plain")


def write_split(root: Path, seed: int, taken: set[str]) -> None:
    """Write the question files of one split and their pictures into `root`; `taken` gathers the text prompts."""
    rng = random.Random(seed)
    pictures = _Pictures(root, rng)
    by_scene = {scene: tuple(thing for thing in SEEN_TOXIC if thing.kind == scene) for scene in TOXIC_SCENES}
    files: dict[str, list[Record]] = {
        "text_toxic": text_toxic(rng, taken),
        "text_benign": text_benign(rng, taken),
        "image_toxic": [
            pictures.describe("image_toxic", number, by_scene[TOXIC_SCENES[number % len(TOXIC_SCENES)]])
            for number in range(PER_SCENE * len(TOXIC_SCENES))
        ],
        "image_heldout": [
            pictures.describe("image_heldout", number, (HELDOUT_TOXIC[number % len(HELDOUT_TOXIC)],))
            for number in range(PER_HELDOUT * len(HELDOUT_TOXIC))
        ],
        "image_benign": [pictures.describe("image_benign", n, PICTURED_BENIGN) for n in range(BENIGN_PICTURES)],
        "vqa": [pictures.visual("vqa", number) for number in range(BENIGN_PICTURES)],
        "recognition_toxic": [
            pictures.recognise("recognition_toxic", n, SEEN_TOXIC[n % len(SEEN_TOXIC)]) for n in range(RECOGNITION)
        ],
        "recognition_benign": [
            pictures.recognise("recognition_benign", n, PICTURED_BENIGN[n % len(PICTURED_BENIGN)])
            for n in range(RECOGNITION)
        ],
        "pairs": [pictures.pair("pairs", number) for number in range(RECOGNITION)],
    }
    files |= harmful_text(root, files["text_toxic"], random.Random(f"harmful text {seed}"))
    for name, rows in files.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
