"""Prompts for steering: each text with a meaningless picture and without any, as the evaluation would ask them.

Prompts and pictures are made by the evaluation's own functions, so that what shifts are taken from and what is answered
differ in the picture alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from retrieval_index.visible_text import visible
from tga.errors import UserError
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question, read_questions
from tga.files import atomic_path
from tga.steering.cmrm import RequestShift
from tga.steering.pictures import blank_picture, mean_picture, noise_picture
from tga.steering.states import PrefixStates, whole_states
from tga.vlm.families import Family, component, family_of

ASKED = ("chat_template", "plain_template", "batch_size", "max_new_tokens", "seed")  # how an evaluation asks
PICTURE_SIZE = 336  # pixels, where the vision tower does not say


@dataclass(frozen=True)
class Subject:
    """A loaded model and how it is asked: the templates and the batch size of the evaluation."""

    name: str
    path: str
    model: Any
    processor: Any
    family: Family
    chat_template: str
    plain_template: str
    batch_size: int

    def rows(self, questions: Sequence[Question], pictures: Sequence[Path | None]) -> list[list[int]]:
        """Token ids of each question's prompt with another picture than its own, or without one."""
        asked = [replace(question, image=picture) for question, picture in zip(questions, pictures, strict=True)]
        templates = {"chat_template": self.chat_template, "plain_template": self.plain_template}
        return prompt_rows(self.model, self.processor, self.family, asked, **templates)

    def plain_rows(self, questions: Sequence[Question]) -> list[list[int]]:
        """Token ids of each question's prompt in words alone."""
        return self.rows(questions, [None] * len(questions))

    def inputs(self, rows: Sequence[Sequence[int]], pictures: Sequence[Path]) -> dict[str, Tensor]:
        """What the model's forward takes of rows with a picture each, padded on the left."""
        batch = prompt_batch(self.model, self.processor, self.family, rows, pictures, padding_side="left")
        return batch.model_inputs()


def subject_of(name: str, path: str, model: Any, processor: Any, evaluation: Mapping[str, Any]) -> Subject:
    """A loaded model, asked as the config of the evaluation says."""
    asked = {key: evaluation[key] for key in ("chat_template", "plain_template", "batch_size")}
    return Subject(name, path, model, processor, family_of(model), **asked)


@dataclass(frozen=True)
class Meaningless:
    """Which meaningless picture: `kind` blank, noise, mean (of the pictures of the questions in `mean_of`), or own.

    size: side in pixels; the vision tower's own where None.
    """

    kind: str
    size: int | None
    seed: int
    mean_of: str | None

    def draw(self, subject: Subject, number: int = 0) -> Image.Image:
        """The picture; noise differs by `number`. Raises UserError where there are no pictures to take the mean of."""
        tower = component(subject.model, subject.family.vision_tower)
        size = int(self.size or getattr(getattr(tower, "config", None), "image_size", None) or PICTURE_SIZE)
        if self.kind == "mean":
            questions = read_questions(self.mean_of or "")
            return mean_picture((question.image for question in questions if question.image is not None), size)
        return noise_picture(size, self.seed + number) if self.kind == "noise" else blank_picture(size)

    def write(self, path: Path, subject: Subject) -> Path:
        """The picture as a PNG at `path`."""
        with atomic_path(path) as temporary:
            self.draw(subject).save(temporary, format="PNG")
        return path


class RequestShifts:
    """The shifts of batches of questions by one meaningless picture, the same for all."""

    def __init__(self, subject: Subject, layers: Sequence[int], picture: Path) -> None:
        self._subject, self._picture, self._layers = subject, picture, tuple(layers)
        self._shift = RequestShift(subject.model, subject.family, layers, self._inputs)

    def __call__(self, questions: Sequence[Question]) -> Tensor:
        """[layers, batch, width], float32 at least."""
        pictured = self._subject.rows(questions, [self._picture] * len(questions))
        return self._shift(pictured, self._subject.plain_rows(questions))

    def by_layer(self, questions: Sequence[Question]) -> dict[int, Tensor]:
        """Layer -> [batch, width]."""
        return dict(zip(self._layers, self(questions), strict=True))

    def _inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return self._subject.inputs(rows, [self._picture] * len(rows))


def anchor_differences(
    subject: Subject, layers: Sequence[int], anchors: Sequence[Question], picture: Meaningless, path: Path
) -> Iterator[Tensor]:
    """[layers, batch, width] of `h_l(x, img') - h_l(x)` for each batch of anchors, with a progress bar.

    path: where a picture that all anchors share is left. Noise is drawn anew for each anchor.

    Raises:
        UserError: anchors without a picture where each is to be taken with its own.
    """
    if picture.kind == "own" and (lacking := [anchor.id for anchor in anchors if anchor.image is None]):
        problem = f"{len(lacking)} of {len(anchors)} anchors have no picture of their own"
        raise UserError(problem, given=", ".join(lacking[:3]), remedy="steering.picture=blank")
    of_each = picture.kind in ("own", "noise")
    shared = None if of_each else RequestShifts(subject, layers, picture.write(path, subject))
    plain = PrefixStates(subject.model, subject.family, layers)
    progress = tqdm(total=len(anchors), desc=visible(f"{subject.name}: anchors"), unit="text")
    with tempfile.TemporaryDirectory() as scratch, progress as bar:
        for start in range(0, len(anchors), subject.batch_size):
            batch = anchors[start : start + subject.batch_size]
            if shared is not None:
                yield shared(batch)
            else:
                pictures = []
                for at, anchor in enumerate(batch):
                    own = anchor.image if picture.kind == "own" else None
                    pictures.append(own or Path(scratch) / f"{at}.png")
                    if own is None:
                        picture.draw(subject, start + at).save(pictures[-1], compress_level=1)
                inputs = subject.inputs(subject.rows(batch, pictures), pictures)
                with_picture = whole_states(subject.model, subject.family, layers, inputs)
                yield with_picture - plain(subject.plain_rows(batch))
            bar.update(len(batch))
