"""The files that runs of the commands write into their directory, by name: what a run may replace, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tga.files import TEMPORARY

CONFIG = "config.yaml"
CHECKPOINT = re.compile(r"step-\d{8,}\.ckpt")
FOLDERS = ("checkpoints", "answered", "figures", "tensorboard")
_RUN_FILE = re.compile(
    r"(config\.yaml|(summary|layers|cell)\.json|table\.md|report\.html|run\.log"
    r"|(metrics|answers|activation|figure\d_answers)\.jsonl"
    r"|checkpoints/step-\d{8,}\.ckpt|answered/[^/]+\.jsonl|figures/[a-z0-9_]+\.(png|jsonl)"
    r"|tensorboard/(events\.out\.tfevents\.[^/]+|hparams\.yaml)"
    r"|(steering_[^/]+/)?(vectors\.safetensors|steering_picture\.png|sweep\.(md|json)|table\.json))"
)


def is_run_file(name: str) -> bool:
    """Whether a path within a run's directory is one that runs give to files of their own, unfinished ones included."""
    folder, _, last = name.rpartition("/")
    if unfinished := TEMPORARY.fullmatch(last):
        name = f"{folder}/{unfinished['name']}".lstrip("/")
    return _RUN_FILE.fullmatch(name) is not None


def run_files_in(directory: Path) -> list[str]:
    """The paths within a directory at which a run would write and something is already; other folders are not read.

    Empty files do not count: there is nothing in them to lose.
    """
    if not directory.is_dir():
        return []
    folders = [directory / name for name in FOLDERS] + sorted(directory.glob("steering_*"))
    found = [path for folder in (directory, *folders) if folder.is_dir() for path in folder.iterdir()]
    names = [path.relative_to(directory).as_posix() for path in found if path.lstat().st_size]
    return sorted(name for name in names if is_run_file(name))


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoints` folder, the latest last; copies under other names are none of them."""
    return sorted(path for path in Path(directory).glob("step-*.ckpt") if CHECKPOINT.fullmatch(path.name))
