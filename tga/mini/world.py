"""The mini world as ordinary files: everything `tga` needs to train, evaluate and export, in one directory.

root/llm/            the safety-aligned LLM (LlamaForCausalLM, tokenizer with its chat template)
root/vision_tower/   the vision tower of the CLIP (CLIPVisionModel, image processor)
root/retriever/      the CLIP, an open_clip local directory
root/train.json      LLaVA JSON: pictures with plain captions, toxic ones among them; pictures in root/images/
root/captions.jsonl  the retrieval corpus
root/evaluation/{choose,report}/*.jsonl   questions; methods are tuned on `choose`, figures come from `report`
root/manifest.json   written last: a directory without it is incomplete and is made again
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

from tga.errors import UserError
from tga.files import write_json
from tga.mini.convert import clip_vision_directory
from tga.mini.language import name_thing, request, scene_caption
from tga.mini.lexicon import BENIGN, PICTURED_BENIGN, TOXIC
from tga.mini.questions import PAIR_SHARE, SEEN_TOXIC, write_split
from tga.mini.scenes import ASSETS, sample_scene
from tga.mini.training_set import training_set_meanwhile
from tga.mini.weights import restore_llm, restore_retriever

MARK = ".mini_world"  # an empty file that says whose directory this is
TRAIN_PICTURES = 10_000
CORPUS_CAPTIONS = 24_000
SPLITS = {"choose": 1_000, "report": 2_000}  # split -> seed of its pictures


def fingerprint() -> str:
    """Hash of everything the directory is made from; a directory with another one is made again."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *ASSETS.rglob("*")]):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def is_complete(root: Path, *, train_pictures: int, captions: int) -> bool:
    """Whether `root` holds this version of the world in this size.

    Raises:
        UserError: it holds this version in another size. Somebody may be training on it, so it is not made again.
    """
    manifest = root / "manifest.json"
    found = json.loads(manifest.read_text()) if manifest.is_file() else {}
    if found.get("fingerprint") != fingerprint():
        return False
    sizes = {"train_pictures": train_pictures, "captions": captions}
    other = {name: found.get(name) for name in sizes if found.get(name) != sizes[name]}
    if other:
        raise UserError(
            "The mini world there has another size",
            given=f"{root}: " + ", ".join(f"{name} is {has} and shall be {sizes[name]}" for name, has in other.items()),
            allowed="the size it has, or a directory of its own for each size",
            remedy="prepare.root=ANOTHER_DIRECTORY, or "
            + " ".join(f"prepare.{name}={has}" for name, has in other.items()),
        )
    return True


def prepare(root: str | Path, *, train_pictures: int = TRAIN_PICTURES, captions: int = CORPUS_CAPTIONS) -> Path:
    """Write the world into `root` unless it is there already.

    The manifest comes last: what an interrupted run left behind is made again.

    Args:
        root: the directory to make. A world of another version in it is replaced, other files in it stay.
        train_pictures: pictures in train.json.
        captions: lines of captions.jsonl.

    Raises:
        UserError: the directory holds something that is not a mini world, or one of another size.
    """
    root = Path(root)
    if is_complete(root, train_pictures=train_pictures, captions=captions):
        return root
    _clear(root)
    with training_set_meanwhile(root, train_pictures):
        restore_llm(root / "llm")
        restore_retriever(root / "retriever")
        clip_vision_directory(root / "retriever", root / "vision_tower")
        write_corpus(root / "captions.jsonl", captions)
        taken: set[str] = set()
        for split, seed in SPLITS.items():
            write_split(root / "evaluation" / split, seed, taken)
    write_json(
        root / "manifest.json", {"fingerprint": fingerprint(), "train_pictures": train_pictures, "captions": captions}
    )
    return root


def _clear(root: Path) -> None:
    """Remove what an earlier version or an interrupted run left, and nothing that is not a world's."""
    mark = root / MARK
    if root.is_dir() and any(root.iterdir()) and not mark.is_file() and not (root / "manifest.json").is_file():
        raise UserError(
            "The directory for the mini world holds something else",
            given=root,
            allowed="a new or empty directory, or one with a mini world in it",
            remedy="prepare.root=ANOTHER_DIRECTORY",
        )
    # The indexes too: what they remember of the pictures are names and sizes.
    for name in ("llm", "vision_tower", "retriever", "images", "evaluation", "index", "index_poisoned"):
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("train.json", "captions.jsonl", "manifest.json"):
        (root / name).unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    mark.touch()  # before anything else, so that an interrupted run is known for what it is


def write_corpus(path: Path, count: int) -> None:
    """Captions of pictures and of things in words only, and toxic snippets; all different."""
    rng = random.Random(1)
    texts: dict[str, None] = {}
    while len(texts) < count:
        draw_of = rng.random()
        if draw_of < 0.7:
            text = scene_caption(sample_scene(rng, (*SEEN_TOXIC, *PICTURED_BENIGN), PICTURED_BENIGN, PAIR_SHARE), rng)
        elif draw_of < 0.9:
            text = scene_caption(sample_scene(rng, BENIGN, BENIGN, PAIR_SHARE), rng)
        else:
            text = request(name_thing(rng.choice(TOXIC), rng, heldout=None), rng, heldout=None)[0]
        texts.setdefault(text)
    with path.open("w") as lines:
        for number, text in enumerate(texts):
            lines.write(json.dumps({"id": f"c{number:05d}", "caption": text}) + "\n")
