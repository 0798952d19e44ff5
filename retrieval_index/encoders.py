"""Encoders: what turns captions (and pictures) into the unit vectors that the index compares.

An encoder is one small file with a class of the protocol below; `ENCODERS` lists them. Which encoder an index was made
with is told by its *identity* (kind and name, or a hash of the files when it is local), its revision and preprocessing,
and by *golden embeddings*: the vectors of one fixed sentence and one fixed picture, which also betray a different
checkpoint, tokenizer or image processor behind the same name.

Torch is imported where a model is loaded and nowhere before: building and asking an index need none of its memory.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from PIL import Image

from retrieval_index.batching import Picture
from retrieval_index.errors import RetrievalError
from retrieval_index.files import hash_files
from retrieval_index.manifest import EncoderRecord

if TYPE_CHECKING:
    import torch

GOLDEN_SENTENCE = "A brown dog sleeps beside a red bicycle in front of a small shop."
# Half precision and other hardware move a unit vector by less than this; another checkpoint moves it by far more.
GOLDEN_COSINE = 0.999
GOLDEN_PICTURE_COSINE = 0.99  # resizing differs by more than arithmetic: 0.9995 between two versions of one processor
LOCAL_DIR = "local-dir:"
# kind -> module and class; imported only when used, each brings a large library.
ENCODERS = {
    "open_clip": ("retrieval_index.open_clip_encoder", "OpenClipEncoder"),
    "sentence_transformers": ("retrieval_index.sentence_encoder", "SentenceEncoder"),
    "transformers": ("retrieval_index.transformers_encoder", "TransformersEncoder"),
}


class Encoder(Protocol):
    """Texts, and for some encoders pictures, as L2-normalised float32 vectors `[rows, width]`.

    Attributes:
        width: numbers per vector.
        encodes_images: whether there is an image tower.
        revision: of the weights where the hub tells one.
        preprocessing: what happens to texts and pictures before the model, as plain values for the manifest.
        truncated: texts so far that had more tokens than the model reads.
    """

    width: int
    encodes_images: bool
    revision: str | None
    preprocessing: dict[str, Any]
    truncated: int

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors `[texts, width]`; `report` is told how many texts are done."""
        ...

    def encode_images(
        self, pictures: Sequence[Picture], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors `[pictures, width]`; a RetrievalError where the encoder has no image tower."""
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
                allowed="an open_clip model with its tag, local-dir:PATH, or a model of the hub",
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
    import torch

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


def describe_encoder(encoder: Encoder, spec: EncoderSpec) -> EncoderRecord:
    """What a manifest tells of an encoder."""
    golden = golden_picture_embedding(encoder)
    return EncoderRecord(
        identity=spec.identity(),
        kind=spec.kind,
        name=spec.name,
        pretrained=spec.pretrained,
        revision=encoder.revision,
        preprocessing=encoder.preprocessing,
        width=encoder.width,
        golden_sentence=tuple(golden_embedding(encoder).tolist()),
        golden_picture=None if golden is None else tuple(golden.tolist()),
    )


def golden_embedding(encoder: Encoder) -> np.ndarray:
    """The encoder's vector of the fixed sentence, `[width]` float32."""
    return encoder.encode_texts([GOLDEN_SENTENCE], batch_size=1)[0]


def golden_picture_embedding(encoder: Encoder) -> np.ndarray | None:
    """The encoder's vector of the fixed picture, `[width]` float32; None where it reads text only."""
    if not encoder.encodes_images:
        return None
    return encoder.encode_images([golden_picture], batch_size=1)[0]


def golden_picture() -> Image.Image:
    """A fixed picture of 320 x 240: gradients, stripes and a disc, so that cropping and resizing leave their mark."""
    y, x = np.mgrid[0:240, 0:320]
    disc = ((x - 200) ** 2 + (y - 90) ** 2 < 50**2) * 160
    channels = [x * 255 // 319, (y // 6 % 2) * 200 + disc // 4, 255 - y * 255 // 239]
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def unit_rows(vectors: torch.Tensor) -> np.ndarray:
    """Rows scaled to length one, as float32 NumPy `[rows, width]`."""
    import torch

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
