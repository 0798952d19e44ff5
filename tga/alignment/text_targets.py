"""Text targets on disk: the pooled states of texts fed to a frozen language model alone, computed once.

C_l and R_l depend on the text, the language model and what a text's tokens weigh. A store is a directory for one
:class:`TargetsIdentity` below the directory that the user names, so that other models and layers never mix:

    DIRECTORY/<digest>/manifest.json                 the identity, to be read by people
    DIRECTORY/<digest>/targets-<number>.safetensors  keys [rows] int64, states [rows, layers, width]

A text's key is a 64-bit hash of it. A shard is written beside its place and renamed; whatever stands there is complete,
so a build that was killed goes on with the texts that are missing, and a store of plain means grows with the next data
set (weights are of one data set's captions, so another one has a store of its own). Reading maps the files into memory;
processes share the pages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tga.alignment.token_weights import MEAN
from tga.errors import UserError
from tga.files import atomic_path, write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 256 * 2**20
Pool = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TargetsIdentity:
    """All that the states depend on beside the text.

    Attributes:
        language_model, tokenizer: fingerprints.
        precision: in which the language model computes them, such as "float32" or "bfloat16 under bf16-mixed".
        max_length: tokens at which a text is cut.
        layers: layer numbers in the order of the states' second dimension.
        width: of a state.
        dtype: in which they are kept, a name of `DTYPES`.
        pooling: "mean", or "sif" and a fingerprint of the tokens' weights.
    """

    language_model: str
    tokenizer: str
    precision: str
    max_length: int
    layers: tuple[int, ...]
    width: int
    dtype: str = "float32"
    pooling: str = MEAN

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            allowed = ", ".join(DTYPES)
            raise UserError(
                "Unknown dtype of the targets", given=self.dtype, allowed=allowed, remedy="alignment.targets_dtype=..."
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one text's states."""
        return len(self.layers) * self.width * DTYPES[self.dtype].itemsize

    @property
    def digest(self) -> str:
        """16 hex digits of all fields."""
        fields = dataclasses.asdict(self)
        if self.pooling == MEAN:  # stores of before there was another pooling have no such field
            del fields["pooling"]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class TextTargetStore:
    """The states of one identity; can be sent to data workers, each of which opens the files for itself.

    Calling it with texts gives their states `[layers, texts, width]` float32, zeros for an empty text.
    """

    def __init__(self, directory: Path, identity: TargetsIdentity) -> None:
        self.identity = identity
        self.directory = Path(directory) / identity.digest
        self._paths: list[Path] = []
        self._files: dict[int, Any] = {}
        self._keys = np.empty(0, dtype=np.int64)
        self._places = np.empty((0, 2), dtype=np.int32)
        self._load_keys()

    def __len__(self) -> int:
        return len(self._keys)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See the class.

        Raises:
            UserError: a text whose states are not there.
        """
        found = torch.zeros(len(texts), len(self.identity.layers), self.identity.width)
        for row, text in enumerate(texts):
            if text:
                shard, place = self._place(text)
                found[row] = self._file(shard)[place : place + 1][0].float()
        return found.transpose(0, 1).contiguous()

    def missing(self, texts: Iterable[str]) -> list[str]:
        """The texts that have no states here, each once, without the empty one, the shortest first.

        Raises:
            UserError: two different texts with one key.
        """
        by_key: dict[int, str] = {}
        for text in texts:
            if text and by_key.setdefault(text_key(text), text) != text:
                raise UserError(
                    "Two texts have the same key in the store of text targets",
                    given=[by_key[text_key(text)], text],
                    remedy="alignment.targets=online",
                )
        keys = np.fromiter(by_key, dtype=np.int64, count=len(by_key))
        absent = keys[~np.isin(keys, self._keys)]
        return sorted((by_key[int(key)] for key in absent), key=lambda text: (len(text), text))

    def require_space(self, rows: int) -> None:
        """UserError where the disk has no room for so many more texts."""
        self.directory.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.directory).free, rows * self.identity.row_bytes
        if needed > free:
            raise UserError(
                "The text targets do not fit on the disk",
                given=f"{human_size(needed)} needed, {human_size(free)} free at {self.directory}",
                remedy="alignment.targets_dtype=float16, data.targets_dir=ANOTHER, or alignment.targets=online",
            )

    def add(self, texts: Sequence[str], pool: Pool, *, batch_size: int, on_batch: Callable[[int], None]) -> None:
        """Compute and write the states of texts that are missing.

        Args:
            texts: different ones, as `missing` gives them: of similar length side by side.
            pool: texts -> states `[layers, texts, width]` on any device.
            on_batch: is told how many texts were computed.
        """
        write_json(self.directory / "manifest.json", dataclasses.asdict(self.identity))
        rows = max(1, SHARD_BYTES // self.identity.row_bytes)
        for start in range(0, len(texts), rows):
            chunk, parts = texts[start : start + rows], []
            for at in range(0, len(chunk), batch_size):
                batch = chunk[at : at + batch_size]
                parts.append(pool(batch).transpose(0, 1).to("cpu", DTYPES[self.identity.dtype]).contiguous())
                on_batch(len(batch))
            keys = torch.tensor([text_key(text) for text in chunk], dtype=torch.int64)
            with atomic_path(self._next_path()) as path:
                save_file({"keys": keys, "states": torch.cat(parts)}, path)
        self._load_keys()

    def _next_path(self) -> Path:
        taken = [int(path.stem.removeprefix("targets-")) for path in self.directory.glob("targets-*.safetensors")]
        return self.directory / f"targets-{max(taken, default=-1) + 1:05d}.safetensors"

    def _load_keys(self) -> None:
        """The keys of all shards in rising order, and where each one's states are: shard and row."""
        self._paths, self._files = sorted(self.directory.glob("targets-*.safetensors")), {}
        keys, places = [self._keys[:0]], [self._places[:0]]
        for shard, path in enumerate(self._paths):
            found = _opened(path).get_tensor("keys").numpy()
            keys.append(found)
            places.append(np.stack([np.full(len(found), shard), np.arange(len(found))], axis=1).astype(np.int32))
        together = np.concatenate(keys)
        order = np.argsort(together, kind="stable")
        self._keys, self._places = together[order], np.concatenate(places)[order]

    def _place(self, text: str) -> tuple[int, int]:
        key = text_key(text)
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key:
            raise UserError(
                "A text has no stored target", given=text, remedy="start the run again, which adds what is missing"
            )
        shard, row = self._places[at].tolist()
        return shard, row

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = _opened(self._paths[shard]).get_slice("states")
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # open files stay in their process


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def human_size(count: int) -> str:
    """Bytes as text, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        remedy = "remove the file: what it held is computed again"
        raise UserError(f"A file of text targets cannot be read ({error})", given=path, remedy=remedy) from error
