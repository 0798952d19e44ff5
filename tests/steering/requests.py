"""Requests to a tiny VLM for the tests of steering: prompts, pictures, and a correction made without hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny import tiny_llava, tiny_picture
from tga.evaluation.prompts import prompt_batch, prompt_rows
from tga.evaluation.questions import Question
from tga.vlm.families import Family, component, family_of

PROMPTS = ("What is it?", "Describe the image in some detail.", "Hi", "How many cats sit there, and where?")


@dataclass
class Setup:
    """A tiny model, its processor, and a folder with pictures `0.png` to `3.png` and `blank.png`."""

    model: Any
    processor: Any
    family: Family
    folder: Path

    def rows(self, prompts: Sequence[str], picture: str | None) -> list[list[int]]:
        image = None if picture is None else self.folder / picture
        asked = [Question(str(n), "", prompt, "chat", image) for n, prompt in enumerate(prompts)]
        template = "tokenizer" if self.processor.tokenizer.chat_template else "vicuna_v1"
        template = "instructblip" if self.family.question_tokenizer else template  # short: its reader has 64 places
        templates = {"chat_template": template, "plain_template": "plain"}
        return prompt_rows(self.model, self.processor, self.family, asked, **templates)

    def inputs(self, rows: Sequence[Sequence[int]], pictures: Sequence[str]) -> dict[str, Tensor]:
        """What the model's forward takes of rows with a picture each (or of rows without any)."""
        paths = [self.folder / picture for picture in pictures]
        batch = prompt_batch(self.model, self.processor, self.family, rows, paths, padding_side="left")
        return batch.model_inputs()

    def request(self, count: int = len(PROMPTS), first: int = 0) -> dict[str, Tensor]:
        """The first `count` prompts, each with a picture of its own."""
        chosen = range(first, first + count)
        return self.inputs(self.rows(PROMPTS[first : first + count], "0.png"), [f"{n}.png" for n in chosen])

    def blank(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Rows with the blank picture, as `RequestShift` asks for them."""
        return self.inputs(rows, ["blank.png"] * len(rows))


def tiny_setup(folder: Path, make: Callable[[], tuple[Any, Any]] = tiny_llava) -> Setup:
    """A tiny model (LLaVA unless `make` is given) with an end token that ends some answers early."""
    for number in range(len(PROMPTS)):
        tiny_picture(number).save(folder / f"{number}.png")
    tiny_picture(9).point(lambda _value: 255).save(folder / "blank.png")
    model, processor = make()
    return Setup(model, processor, family_of(model), folder)


def in_float64(setup: Setup) -> Setup:
    """The same model in float64."""
    return replace(setup, model=setup.model.double())


def random_shifts(layers: Sequence[int], width: int = 32, rows: int | None = None) -> dict[int, Tensor]:
    """Seeded shifts, large enough to change the answers of a tiny model."""
    generator = torch.Generator().manual_seed(5)
    shape = (width,) if rows is None else (rows, width)
    return {layer: torch.randn(shape, generator=generator) for layer in layers}


@contextmanager
def patched(setup: Setup, shifts: Mapping[int, Tensor], alpha: float, first: int = 0) -> Iterator[None]:
    """The correction without hooks: other `forward` functions of the layers; positions before `first` stay."""
    decoder = component(setup.model, setup.family.decoder_layers)
    for layer, shift in shifts.items():
        module: Any = decoder[layer - 1]  # type: ignore[index]

        def forward(*args: Any, _plain: Any = module.forward, _shift: Tensor = shift, **kwargs: Any) -> Tensor:
            hidden = _plain(*args, **kwargs)
            where = (torch.arange(hidden.shape[1]) >= first).to(hidden.dtype)[None, :, None]
            return hidden - alpha * _shift.to(hidden.dtype).reshape(-1, 1, hidden.shape[-1]) * where

        module.forward = forward
    try:
        yield
    finally:
        for layer in shifts:
            del decoder[layer - 1].forward  # type: ignore[index]


def greedy_without_cache(model: Any, inputs: Mapping[str, Tensor], tokens: int) -> list[int]:
    """The continuation of one prompt, each token by a whole forward pass."""
    given = dict(inputs)
    found: list[int] = []
    with torch.no_grad():
        for _ in range(tokens):
            token = model(**given, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
            given["input_ids"] = torch.cat([given["input_ids"], token], dim=1)
            given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(token)], dim=1)
            found.append(int(token))
    return found
