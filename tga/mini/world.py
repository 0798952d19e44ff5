"""The mini world as ordinary files: everything `tga` needs to train, evaluate and export, in one directory.

root/llm/            the safety-aligned LLM (LlamaForCausalLM, tokenizer with its chat template)
root/vision_tower/   the vision tower of the CLIP (CLIPVisionModel, image processor)
root/retriever/      the CLIP, an open_clip local directory
root/train.json      LLaVA JSON: pictures with plain captions, toxic ones among them; pictures in root/images/
root/captions.jsonl  the retrieval corpus
root/evaluation/{choose,report}/*.jsonl   questions; methods are tuned on `choose`, figures come from `report`
root/.mini_world     whose directory this is, and every file of it with its hash; written before they are there
root/manifest.json   written last, with the same list: a directory without it is incomplete and is made again

Nothing that is not on the list is ever removed, and nothing of a complete world: another version or another size needs
a directory of its own. An index in the directory (`index`) or text targets (`targets`) are none of the world's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tga.errors import UserError
from tga.files import (
    LOCK,
    TEMPORARY,
    entries,
    file_sha256,
    give_modes,
    read_object,
    remove_ours,
    temporary_prefix,
    write_json,
)
from tga.mini.convert import clip_vision_directory
from tga.mini.language import name_thing, request, scene_caption
from tga.mini.lexicon import BENIGN, PICTURED_BENIGN, TOXIC
from tga.mini.questions import PAIR_SHARE, SEEN_TOXIC, write_split
from tga.mini.scenes import ASSETS, sample_scene
from tga.mini.training_set import training_set_meanwhile
from tga.mini.weights import restore_llm, restore_retriever

MARK, KIND = ".mini_world", "mini world of tga"
MANIFEST = "manifest.json"
MAKING = "world"  # in the name of the directory in which it is made
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
        UserError: it holds another version, or another size. Runs may need it as it is, so it stays.
    """
    found = read_object(root / MANIFEST)
    if not {"fingerprint", "train_pictures", "captions"} <= found.keys():
        return False
    sizes = {"train_pictures": train_pictures, "captions": captions}
    other = {name: found[name] for name in sizes if found[name] != sizes[name]}
    if found["fingerprint"] != fingerprint():
        raise UserError(
            "The mini world there is of another version of tga, and is not replaced: runs of before may need it",
            given=f"{root}: version {found['fingerprint']}, and this tga writes {fingerprint()}",
            allowed="a directory of its own for each version",
            remedy="prepare.root=ANOTHER_DIRECTORY, or remove this one yourself",
        )
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

    It is made in a directory of its own within `root` and moved into place file by file, after the mark has been given
    the list of them; the manifest comes last. What an interrupted run left behind is made again: of that only files of
    the list are removed, with the content that they were written with.

    Args:
        root: the directory to make.
        train_pictures: pictures in train.json.
        captions: lines of captions.jsonl.

    Raises:
        UserError: the directory holds something that is not a mini world, or one of another version or size; or a file
            of somebody else's stands where one of the world belongs.
    """
    root = Path(root)
    if is_complete(root, train_pictures=train_pictures, captions=captions):
        return root
    _remove_interrupted(root)
    root.mkdir(parents=True, exist_ok=True)
    about = {"fingerprint": fingerprint(), "train_pictures": train_pictures, "captions": captions}
    write_json(root / MARK, {"kind": KIND, "files": {}})  # before anything else: an interrupted run is then known
    with tempfile.TemporaryDirectory(dir=root, prefix=temporary_prefix(root / MAKING), suffix=".tmp") as name:
        made = Path(name)
        with training_set_meanwhile(made, train_pictures):
            restore_llm(made / "llm")
            restore_retriever(made / "retriever")
            clip_vision_directory(made / "retriever", made / "vision_tower")
            write_corpus(made / "captions.jsonl", captions)
            taken: set[str] = set()
            for split, seed in SPLITS.items():
                write_split(made / "evaluation" / split, seed, taken)
        give_modes(made)
        files = {file: file_sha256(made / file) for file in entries(made)}
        _refuse_other_files(root, files)
        write_json(root / MARK, {"kind": KIND, "files": files})
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            os.rename(made / file, root / file)
    write_json(root / MANIFEST, {**about, "files": files})
    return root


def _remove_interrupted(root: Path) -> None:
    """Remove what an interrupted run left.

    Raises:
        UserError: the directory holds something else.
    """
    there = [path.name for path in root.iterdir() if path.name != LOCK] if root.is_dir() else []
    mark = read_object(root / MARK)
    files = mark.get("files") if mark.get("kind") == KIND else None
    if (there and not isinstance(files, dict)) or (root.exists() and not root.is_dir()):
        raise UserError(
            "The directory for the mini world holds something else",
            given=root,
            allowed="a new or empty directory, or one with a mini world in it",
            remedy="prepare.root=ANOTHER_DIRECTORY",
        )
    for name in there:
        unfinished = TEMPORARY.fullmatch(name)
        if unfinished and unfinished["name"] == MAKING and not (root / name).is_symlink():
            shutil.rmtree(root / name)
    if files:
        remove_ours(root, lambda name: name in files and file_sha256(root / name) == files[name])
        _refuse_other_files(root, files)  # told now, and not after everything has been made


def _refuse_other_files(root: Path, files: Iterable[str]) -> None:
    """Raise UserError where something stands in the place of a file to come, or a link in the place of its folder."""
    folders = {parent for file in files for parent in Path(file).parents}
    taken = [str(folder) for folder in folders if (root / folder).is_symlink() and folder != Path(".")]
    taken += [file for file in files if os.path.lexists(root / file)]
    if taken:
        raise UserError(
            "Files of the mini world would replace others, which no mini world wrote or which were changed since",
            given=f"{root}: {', '.join(sorted(taken)[:3])}" + (f" and {len(taken) - 3} more" if len(taken) > 3 else ""),
            remedy="move them away, or prepare.root=ANOTHER_DIRECTORY",
        )


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
