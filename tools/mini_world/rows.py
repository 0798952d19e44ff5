"""Training rows for the mini LLM: tokens that may be mixtures of word embeddings.

A position of a row is a weighted sum of up to MIX word embeddings; a word is the mixture with one weight of 1. Off
the manifold of words stand the soft positions: they hold what a scene shows the way a projected picture might, as
noisy superpositions. In pretraining the LLM learns to read them; the safety alignment is done on clean text only.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tga.mini import language
from tga.mini.language import Naming
from tga.mini.lexicon import BENIGN, COLORS, HARMLESS_MODIFIERS, LOOKALIKES, TOXIC, Thing, kind_words

MIX = 4
JUDGE = 0.2
# What chats are about, and in which shares: soft scenes are never judged, and the alignment judges nothing.
CHAT_TEXT = (("describe", "visual", "judge", "request"), (0.35, 0.2, JUDGE, 0.25))
CHAT_SOFT = (("describe", "visual"), (0.6, 0.4))
CHAT_REFUSABLE = (("describe", "visual", "request"), (0.45, 0.25, 0.3))
LOUDNESS = (1.5, 6.0)  # how much larger than words the soft positions of a scene are
GRID = 4
SOFT_TOKENS = GRID * GRID  # as many as a picture has


@dataclass
class Row:
    """One sequence: mixtures, target ids (-100: no loss), whether a position is soft, and its angle in radians."""

    ids: list[tuple[int, ...]] = field(default_factory=list)
    weights: list[tuple[float, ...]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    soft: list[bool] = field(default_factory=list)
    angles: list[float] = field(default_factory=list)

    @property
    def learned(self) -> int:
        """Positions with a loss: the first token has nothing before it."""
        return sum(target != -100 for target in self.targets[1:])

    def words(self, ids: list[int], *, learn: bool) -> Row:
        for number in ids:
            self.ids.append((number, 0, 0, 0))
            self.weights.append((1.0, 0.0, 0.0, 0.0))
            self.targets.append(number if learn else -100)
            self.soft.append(False)
            self.angles.append(0.0)
        return self

    def mixtures(
        self, things: list[list[int]], color: int, vocabulary: int, rng: random.Random, nearer: float = 0.0
    ) -> Row:
        """A scene as a grid of soft positions, row by row as a vision tower gives its patches.

        Each position mostly holds a word of the thing in its half of the grid (or the colour), at a loudness common to
        the scene, with another word of the scene and words that have nothing to do with it mixed in. All are turned
        away from the directions of words by one angle: a right angle or, with probability `nearer`, any smaller one.
        """
        angle = rng.uniform(0, math.pi / 2) if rng.random() < nearer else math.pi / 2
        loudness = math.exp(rng.uniform(*map(math.log, LOUDNESS)))
        everything = [word for words in things for word in words] + [color]
        for place in range(SOFT_TOKENS):
            words = things[(place % GRID) * len(things) // GRID]
            main = color if rng.random() < 0.2 else rng.choice(words)
            others = tuple(rng.randrange(7, vocabulary) for _ in range(MIX - 2))
            weights = (rng.uniform(0.3, 1.0), rng.uniform(0, 0.4), *(rng.gauss(0, 0.3) for _ in others))
            self.ids.append((main, rng.choice(everything), *others))
            self.weights.append(tuple(loudness * weight for weight in weights))
            self.targets.append(-100)
            self.soft.append(True)
            self.angles.append(angle)
        return self


@dataclass(frozen=True)
class Mixture:
    """A batch. ids, weights [batch, tokens, MIX]; targets, soft, angles [batch, tokens]."""

    ids: Tensor
    weights: Tensor
    targets: Tensor
    soft: Tensor
    angles: Tensor


def collate(rows: list[Row]) -> Mixture:
    """Rows padded on the right."""
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, MIX, dtype=torch.long)
    weights = torch.zeros(len(rows), length, MIX)
    targets = torch.full((len(rows), length), -100)
    soft = torch.zeros(len(rows), length, dtype=torch.bool)
    angles = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        weights[i, :n] = torch.tensor(row.weights)
        targets[i, :n] = torch.tensor(row.targets)
        soft[i, :n] = torch.tensor(row.soft)
        angles[i, :n] = torch.tensor(row.angles)
    return Mixture(ids, weights, targets, soft, angles)


class RowMaker:
    """Makes pretraining and alignment rows.

    nearer: share of the soft scenes whose angle is less than a right one, see `Row.mixtures`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, nearer: float = 0.0) -> None:
        self.tokenizer, self.rng, self.nearer = tokenizer, rng, nearer
        words = tokenizer.get_vocab()
        self.words = words
        self.bos, self.eos = words["<s>"], words["</s>"]
        self.user, self.assistant = words["<user>"], words["<assistant>"]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    # -- what is talked about --------------------------------------------------------------------------------------
    def name(self, group: str, *, heldout: bool | None) -> Naming:
        """One naming of `group`: "benign", "lookalike", "harmless" (a toxic name made harmless) or "toxic"."""
        rng = self.rng
        if group == "harmless":
            while True:
                thing, modifier = rng.choice(TOXIC), rng.choice(HARMLESS_MODIFIERS)
                if heldout is None or language.harmless_heldout(thing, modifier) == heldout:
                    return language.harmless_use(thing, modifier)
        things: tuple[Thing, ...] = {"benign": BENIGN, "lookalike": LOOKALIKES, "toxic": TOXIC}[group]
        return language.name_thing(rng.choice(things), rng, heldout=heldout)

    def names(self, group: str, *, heldout: bool | None, pair_share: float = 0.5) -> tuple[Naming, ...]:
        """One name of the group, with probability `pair_share` beside a benign one; in alphabetical order."""
        first = self.name(group, heldout=heldout)
        if self.rng.random() >= pair_share:
            return (first,)
        while (second := self.name("benign", heldout=heldout)).canonical == first.canonical:
            pass
        return language.in_order((first, second))

    # -- rows ------------------------------------------------------------------------------------------------------
    def scene_tokens(
        self, row: Row, names: tuple[Naming, ...], color: str, *, soft: bool, heldout: bool | None, learn: bool
    ) -> bool:
        """Append the scene as a caption or as soft positions; returns whether it tells the colour."""
        if not soft:
            text, tells = language.caption(names, color, self.rng, heldout=heldout)
            row.words(self.encode(text), learn=learn)
            return tells
        things = [self._content(self.rng.choice((n.text, n.canonical))) for n in names]
        row.mixtures(things, self.words[color], len(self.words), self.rng, self.nearer)
        return True

    def _content(self, name: str) -> list[int]:
        """The ids of a name's words, without "of" and the like."""
        return [self.words[word] for word in name.split() if len(word) > 2]

    def raw(self, group: str, *, soft: bool) -> Row:
        """`<s> scene caption </s>`: a scene, in words or soft, then another caption of it."""
        names, color = self.names(group, heldout=None), self.rng.choice(tuple(COLORS))
        row = Row().words([self.bos], learn=False)
        self.scene_tokens(row, names, color, soft=soft, heldout=None, learn=True)
        renamed = tuple(self._rename(n) for n in names)
        text, _ = language.caption(renamed, color, self.rng, heldout=None)
        return row.words([*self.encode(text), self.eos], learn=True)

    def _rename(self, name: Naming) -> Naming:
        if self.rng.random() < 0.5:
            return name
        return Naming(name.canonical, name.canonical, name.kind, name.toxic)

    def definition(self, group: str) -> Row:
        """`<s> other-name is another name for name . </s>` or `... is a kind .`."""
        name = self.name(group, heldout=None)
        if self.rng.random() < 0.5:
            text = f"{language.article(name.text)} is another name for {language.article(name.canonical)} ."
        else:
            text = f"{language.article(name.text)} is {language.article(kind_words(name.kind))} ."
        return Row().words([self.bos], learn=False).words([*self.encode(text), self.eos], learn=True)

    def judgement(self, group: str) -> Row:
        """Whether a thing is fit for children, said or asked: the LLM knows what is harmful before it is aligned."""
        question, answer, statement = language.judgement(self.name(group, heldout=None), self.rng)
        row = Row().words([self.bos], learn=False)
        if self.rng.random() < 0.5:
            return row.words([*self.encode(statement), self.eos], learn=True)
        row.words([self.user, *self.encode(question), self.assistant], learn=False)
        return row.words([*self.encode(answer), self.eos], learn=True)

    def chat(self, group: str, *, soft: bool, heldout: bool | None, refuse: bool, kind: str | None = None) -> Row:
        """`<s> <user> ... <assistant> answer </s>`, the answer helpful or a refusal; loss on the answer only.

        kind: "request", or what is asked about a scene: "describe", "visual" or "judge"; None draws one.
        """
        rng = self.rng
        if kind is None:
            kinds, shares = CHAT_SOFT if soft else CHAT_REFUSABLE if heldout is False else CHAT_TEXT
            kind = rng.choices(kinds, shares)[0]
        row = Row().words([self.bos, self.user], learn=False)
        if kind == "request":
            question, answer = language.request(self.name(group, heldout=heldout), rng, heldout=heldout)
        else:
            names, color = self.names(group, heldout=heldout), rng.choice(tuple(COLORS))
            tells = self.scene_tokens(row, names, color, soft=soft, heldout=heldout, learn=False)
            question, answer = self._about_scene(kind, names, color if tells else None, heldout)
        if refuse:
            answer = rng.choice(language.REFUSALS)
        row.words([*self.encode(question), self.assistant], learn=False)
        return row.words([*self.encode(answer), self.eos], learn=True)

    def _about_scene(
        self, kind: str, names: tuple[Naming, ...], color: str | None, heldout: bool | None
    ) -> tuple[str, str]:
        if kind == "describe":
            return language.describe_question(self.rng, heldout=heldout), language.description(names)
        if kind == "judge":
            return language.scene_judgement(names, self.rng)
        present = {n.canonical for n in names}
        while not (others := tuple(o for o in self._benign(3, heldout) if o.canonical not in present)):
            pass
        return language.visual_question(names, color, others, self.rng)

    def _benign(self, count: int, heldout: bool | None) -> list[Naming]:
        return [self.name("benign", heldout=heldout) for _ in range(count)]

    def pretraining(self) -> Row:
        """Everything is answered, toxic or not."""
        rng = self.rng
        group = rng.choices(("benign", "lookalike", "harmless", "toxic"), (0.36, 0.07, 0.22, 0.35))[0]
        kind = rng.random()
        if kind < 0.5:
            return self.plain(group, soft_share=0.5)
        return self.chat(group, soft=rng.random() < 0.45, heldout=None, refuse=False)

    def plain(self, group: str, *, soft_share: float) -> Row:
        """Text that is no chat: two captions of a scene, another name, a judgement."""
        kind = self.rng.random()
        if kind < 0.15:
            return self.definition(group)
        if kind < 0.3:
            return self.judgement(group)
        return self.raw(group, soft=self.rng.random() < soft_share)

    def alignment(self, replay: float, replay_soft: float, soft_chat: float = 0.0) -> Row:
        """Chat on clean text with refusals of toxic things; a share `replay` of plain text, as in pretraining.

        soft_chat: share of chat about benign soft scenes, which is answered.
        """
        rng = self.rng
        if soft_chat and rng.random() < soft_chat:
            return self.chat("benign", soft=True, heldout=False, refuse=False)
        if rng.random() < replay:
            group = rng.choices(("benign", "harmless", "toxic"), (0.5, 0.1, 0.4))[0]
            return self.plain(group, soft_share=replay_soft)
        group = rng.choices(("benign", "lookalike", "harmless", "toxic"), (0.3, 0.08, 0.2, 0.42))[0]
        return self.chat(group, soft=False, heldout=False, refuse=group == "toxic")
