"""The projector's training pictures and their captions, drawn by a process of their own.

Drawing is Python on one core, and so is the rest of the world; with a process for each they take half the time.

    python -m tga.mini.training_set ROOT COUNT PARENT
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tga.child_process import module_command, module_environment
from tga.errors import UserError
from tga.files import write_json
from tga.mini.language import scene_caption
from tga.mini.lexicon import PICTURED_BENIGN
from tga.mini.questions import PAIR_SHARE, SEEN_TOXIC
from tga.mini.scenes import TRAIN, Scene, draw, sample_scene, save_picture

TOXIC_SHARE = 0.35  # of the training pictures, as guns and beer occur in web data


def training_scene(rng: random.Random) -> Scene:
    """A scene of the projector's pictures: held-out toxic things never occur."""
    first = SEEN_TOXIC if rng.random() < TOXIC_SHARE else PICTURED_BENIGN
    return sample_scene(rng, first, PICTURED_BENIGN, PAIR_SHARE)


def write_training_set(root: Path, count: int, *, wanted_by: int | None = None) -> None:
    """root/train.json (LLaVA's image-caption layout) and root/images/, which must not be there.

    wanted_by: process id of the parent, without which nobody wants them any more; None: they are wanted anyway.
    """
    (root / "images").mkdir(parents=True)

    def record(number: int) -> dict[str, Any]:
        # A source of its own, so that a picture does not depend on those before it.
        rng = random.Random(f"training picture {number}")
        scene, name = training_scene(rng), f"{number:05d}"
        save_picture(draw(scene, rng, TRAIN), root / "images" / f"{name}.png")
        if wanted_by is not None and os.getppid() != wanted_by:
            raise SystemExit("The process that wants these pictures is gone")
        turns = [
            {"from": "human", "value": "<image>\nDescribe the picture."},
            {"from": "gpt", "value": scene_caption(scene, rng)},
        ]
        return {"id": name, "image": f"{name}.png", "conversations": turns}

    records = [record(number) for number in tqdm(range(count), desc="mini world: pictures", unit="picture")]
    write_json(root / "train.json", records)


@contextmanager
def training_set_meanwhile(root: Path, count: int) -> Iterator[None]:
    """:func:`write_training_set` in a process of its own while the block runs; both are done at its end.

    Where the block raises, the process is stopped.

    Raises:
        UserError: the process failed; what it said stands in the terminal.
    """
    command = module_command(__name__, [str(root.absolute()), str(count), str(os.getpid())])
    with subprocess.Popen(command, env=module_environment()) as drawing:
        try:
            yield
        except BaseException:
            drawing.kill()
            raise
        code = drawing.wait()
    if code:
        raise UserError(
            "The training pictures of the mini world could not be drawn",
            given=f"exit code {code} of: {' '.join(command)}",
            remedy="read what it said above; a full disk is the usual reason",
        )


if __name__ == "__main__":
    try:
        write_training_set(Path(sys.argv[1]), int(sys.argv[2]), wanted_by=int(sys.argv[3]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
