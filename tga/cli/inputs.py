"""What a run reads, as short digests: the files that its config leads to, and the versions of what computes.

Every text in a config that names something on disk counts, so a setting that is added tomorrow counts too. What a run
writes itself is left out. It is kept cheap: a large file goes by its size and the time of its last change, a directory
with a manifest by that manifest, and the pictures beside a data file by the data file.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retrieval_index.encoders import LOCAL_DIR
from tga.cli.common import versions

COMPUTES = ("version_tga_vlm", "version_torch", "version_transformers")
# Made by a run where they are missing; what they are made of is among the inputs.
WRITTEN = ("run_dir", "ckpt_path", "data.index_dir")
METRICS = "evaluation.metrics."
MANIFEST = "manifest.json"
MODEL_FILES = ("config.json", "open_clip_config.json", "modules.json")
HASHED_BYTES = 64 * 2**20


def inputs_identity(values: Mapping[str, Any]) -> dict[str, str]:
    """Name -> digest of everything on disk that a plain config leads to, and name -> version.

    Names of the hub stand for themselves: they are part of the config.
    """
    found = {key: version for key, version in versions().items() if key in COMPUTES}
    data = values.get("data") or {}
    made_here = ["data.neighbours"] if data.get("captions") is not None else []
    for key, text in _texts(values):
        if key not in (*WRITTEN, *made_here) and not key.startswith((METRICS, "models.")):
            digest = _digest(Path(text.removeprefix(LOCAL_DIR)))
            found |= {} if digest is None else {key: digest}
    return found | _question_files(values.get("evaluation") or {})


def _question_files(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The metrics' files below each root that the evaluation names; of a folder of pictures the names and sizes."""
    found = {}
    roots = {key: Path(value) for key, value in evaluation.items() if key.endswith("root") and value is not None}
    for key, root in roots.items():
        for name, metric in (evaluation.get("metrics") or {}).items():
            path = root / str(metric.get("file", ""))
            label = f"{METRICS}{name}" if key == "root" else f"evaluation.{key}.{name}"
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                listing = "".join(f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n" for file in files)
                found[label] = hashlib.sha256(listing.encode()).hexdigest()[:16]
            elif path.is_file():
                found[label] = _file_digest(path)
    return found


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from _texts(value, f"{key}[{position}]")
    elif isinstance(node, str) and node and len(node) < 4096 and "\n" not in node:
        yield key, node


def _digest(path: Path) -> str | None:
    """16 hex digits; None for what is not there, or is a directory that says nothing of its content."""
    try:
        if path.is_file():
            return _file_digest(path)
        if not path.is_dir():
            return None
    except OSError:  # a text that is no path: too long a name, a character that paths may not have
        return None
    if (path / MANIFEST).is_file():
        return _file_digest(path / MANIFEST)
    if any((path / name).is_file() for name in MODEL_FILES):
        return _directory_digest(path)
    return None


def _directory_digest(directory: Path) -> str:
    """Names and contents of all files below that are not hidden."""
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {_file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    about = path.stat()
    return _content(str(path.absolute()), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _content(path: str, size: int, changed_ns: int) -> str:
    """Of the bytes up to `HASHED_BYTES`; of size and time of change beyond. Cached for as long as neither differs."""
    if size > HASHED_BYTES:
        return hashlib.sha256(f"{size} {changed_ns}".encode()).hexdigest()[:16]
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
