"""Encoders: what turns captions (and pictures) into the unit vectors that the index compares.

An encoder is one small file with a class of the protocol below; `ENCODERS` lists them. Which encoder an index was made
with is told by its *identity* (kind and name, or a hash of the files when it is local) and by a *golden embedding*: the
vector of one fixed sentence, which also betrays a different checkpoint behind the same name.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from retrieval_index.captions import hash_files
from retrieval_index.errors import RetrievalError

GOLDEN_SENTENCE = "A brown dog sleeps beside a red bicycle in front of a small shop."
# Half precision and other hardware move a unit vector by less than this; another checkpoint moves it by far more.
GOLDEN_COSINE = 0.999
LOCAL_DIR = "local-dir:"
# kind -> module and class; imported only when used, each brings a large library.
ENCODERS = {
    "open_clip": ("retrieval_index.open_clip_encoder", "OpenClipEncoder"),
    "sentence_transformers": ("retrieval_index.sentence_encoder", "SentenceEncoder"),
}


class Encoder(Protocol):
    """Texts, and for some encoders pictures, as L2-normalised float32 vectors `[rows, width]`."""

    width: int
    encodes_images: bool

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors `[texts, width]`; `report` is told how many texts are done."""
        ...

    def encode_images(
        self, paths: Sequence[Path | BytesIO], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors `[paths, width]` of files or their bytes; a RetrievalError where the encoder has no image tower."""
        ...


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder: its kind (a key of `ENCODERS`), its name, and for open_clip the pretrained tag or weight file."""

    kind: str
    name: str
    pretrained: str | None = None

    def check(self) -> None:
        """Raise RetrievalError for an unknown kind, no name, or a local directory that does not exist."""
        if self.kind not in ENCODERS:
            raise RetrievalError(
                "Unknown kind of encoder", given=self.kind, allowed=", ".join(ENCODERS), remedy="encoder.kind=KIND"
            )
        if not self.name:
            raise RetrievalError(
                "No encoder was named",
                allowed="an open_clip model with its tag, local-dir:PATH, or a sentence-transformers model",
                remedy="encoder.name=ViT-B-32 encoder.pretrained=laion2b_s34b_b79k",
            )
        if self.name.startswith(LOCAL_DIR) and not Path(self.name.removeprefix(LOCAL_DIR)).is_dir():
            raise RetrievalError(
                "The encoder's directory does not exist", given=self.name, remedy="encoder.name=local-dir:PATH"
            )

    def identity(self) -> str:
        """The encoder's name in manifests: places on this disk are replaced by a hash of what lies there."""
        directory = Path(self.name.removeprefix(LOCAL_DIR))
        if self.name.startswith(LOCAL_DIR) or directory.is_dir():
            return f"{self.kind}:local:{_hash_directory(directory)}"
        if self.pretrained is None:
            return f"{self.kind}:{self.name}"
        if Path(self.pretrained).is_file():
            return f"{self.kind}:{self.name}/file:{hash_files([self.pretrained])[:16]}"
        return f"{self.kind}:{self.name}/{self.pretrained}"


def load_encoder(spec: EncoderSpec, *, device: str = "auto", precision: str = "fp32") -> Encoder:
    """Load the encoder that `spec` names, in evaluation mode.

    Args:
        spec: which encoder.
        device: a torch device, or "auto": cuda if there is one, else cpu.
        precision: fp32, fp16 or bf16.

    Raises:
        RetrievalError: an unknown kind, or a model that cannot be loaded.
    """
    spec.check()
    if precision not in ("fp32", "fp16", "bf16"):
        raise RetrievalError(
            "Unknown precision", given=precision, allowed="fp32, fp16, bf16", remedy="encoder.precision=fp32"
        )
    module, name = ENCODERS[spec.kind]
    loader = getattr(importlib.import_module(module), name)
    return cast(Encoder, loader(spec.name, spec.pretrained, device=choose_device(device), precision=precision))


def choose_device(device: str) -> str:
    """A torch device; "auto" is cuda where there is one, else cpu.

    Raises:
        RetrievalError: a device that this machine does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RetrievalError(
            "The device cannot be used",
            given=device,
            allowed="auto, cpu, cuda, cuda:1, ...",
            remedy="encoder.device=auto",
        ) from error
    return device


def golden_embedding(encoder: Encoder) -> np.ndarray:
    """The encoder's vector of the fixed sentence, `[width]` float32."""
    return encoder.encode_texts([GOLDEN_SENTENCE], batch_size=1)[0]


def unit_rows(vectors: torch.Tensor) -> np.ndarray:
    """Rows scaled to length one, as float32 NumPy `[rows, width]`."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def _hash_directory(directory: Path) -> str:
    """16 hex digits over the relative names and bytes of a directory's visible files."""
    files = sorted(
        file
        for file in directory.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(directory).parts)
    )
    names = "\n".join(str(file.relative_to(directory)) for file in files)
    return hashlib.sha256(f"{names}\n{hash_files(files)}".encode()).hexdigest()[:16]
