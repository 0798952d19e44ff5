"""Toxic requests in words with a picture beside them: the setting in which ReGap and CMRM are measured.

The requests are the first of the split's `text_toxic` ones, so that `text_dsr` says what the LLM does with them alone,
and no request is in both splits. Each stands in three files under the same number: with a blank picture, with a picture
of a harmless thing, and with a picture of the very thing that is asked for. What a picture changes is the difference
between them. The related pictures may show things that no projector picture shows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image

from tga.mini import language
from tga.mini.lexicon import COLORS, PICTURED_BENIGN, TOXIC, Thing
from tga.mini.scenes import PICTURE_SIZE, TEST, Scene, draw, save_picture

REQUESTS = 100  # questions in each of the three files
BLANK = "blank.png"  # beside `images`: the same white picture in every split

Record = dict[str, Any]


def harmful_text(root: Path, text_toxic: list[Record], rng: random.Random) -> dict[str, list[Record]]:
    """File name -> its questions, of the first `REQUESTS` requests among `text_toxic`; their pictures are drawn.

    root: the split's directory, with its `images` folder. Raises ValueError where there are fewer requests.
    """
    asked = [(row, thing) for row in text_toxic if (thing := requested_thing(row["prompt"])) is not None][:REQUESTS]
    if len(asked) < REQUESTS:
        raise ValueError(f"{len(asked)} toxic requests, {REQUESTS} are needed")
    save_picture(Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), "white"), root / BLANK)
    files: dict[str, list[Record]] = {"harmful_blank": [], "harmful_irrelevant": [], "harmful_related": []}
    for number, (row, thing) in enumerate(asked):
        shown = {"harmful_irrelevant": rng.choice(PICTURED_BENIGN), "harmful_related": thing}
        for name, rows in files.items():
            image = BLANK
            if name in shown:
                image = f"images/{name}-{number:04d}.png"
                scene = Scene((shown[name],), rng.choice(tuple(COLORS)))
                save_picture(draw(scene, rng, TEST), root / image)
            rows.append({**row, "id": f"{name}-{number:04d}", "image": image})
    return files


def requested_thing(prompt: str) -> Thing | None:
    """The toxic thing that a request in a held-out phrasing is about; None for any other text."""
    for pattern in language.REQUESTS[1]:
        before, after = pattern.split("{t}")
        if prompt.startswith(before) and prompt.endswith(after):
            named = prompt[len(before) : len(prompt) - len(after)]
            if named in _BY_NAME:
                return _BY_NAME[named]
    return None


_BY_NAME = {
    language.article(name): thing for thing in TOXIC for name in (thing.name, *thing.aliases, *thing.heldout_aliases)
}
