"""Captions of one shard -> embeddings of one shard: the function that every engine runs.

It reads `shards/NNNNN.arrow`, encodes the captions and writes `shards/NNNNN.npy` and, last, `encoded/NNNNN.json`, which
tells what was made. A shard depends on nothing but its own captions, so any process may make it, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval_index.encoders import Encoder, EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.files import file_sha256, write_json
from retrieval_index.manifest import Shard
from retrieval_index.store import embeddings_path, rows_path, unreadable, write_embeddings

Report = Callable[[int], None]


@dataclass(frozen=True)
class EncoderSource:
    """How a process comes by the encoder: a plain value that travels to other processes.

    Args:
        spec: which encoder.
        device: torch device, or "auto".
        precision: fp32, fp16 or bf16.
        threads: of torch on a CPU; None leaves its own number. Another number may change the last bit of a sum.
    """

    spec: EncoderSpec
    device: str = "auto"
    precision: str = "fp32"
    threads: int | None = None

    def load(self) -> Encoder:
        """The loaded encoder."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        return load_encoder(self.spec, device=self.device, precision=self.precision)


class ShardEncoder:
    """Makes the embeddings of shards by number.

    Args:
        directory: of the work.
        encoder: loaded.
        batch_size: captions per batch of the encoder.
        dtype: float32 or float16, of the embeddings on disk.
    """

    def __init__(self, directory: Path, encoder: Encoder, *, batch_size: int, dtype: str) -> None:
        self._directory, self._encoder = directory, encoder
        self._batch_size, self._dtype = batch_size, dtype

    def __call__(self, number: int) -> int:
        """Make shard `number` unless it is there; returns its rows."""
        if not is_encoded(self._directory, number):
            embeddings, truncated = self.encode(number)
            self.write(number, embeddings, truncated)
        return read_shard(self._directory, number).rows

    def encode(self, number: int, report: Report | None = None) -> tuple[np.ndarray, int]:
        """Embeddings `[rows, width]` of the shard's captions, and how many captions were cut.

        Raises:
            RetrievalError: captions that cannot be read, or vectors that are not finite.
        """
        captions = _read_captions(rows_path(self._directory, number))
        before = self._encoder.truncated
        embeddings = self._encoder.encode_texts(captions, batch_size=self._batch_size, report=report)
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(broken):
            raise RetrievalError(
                "The encoder gave vectors that are not finite",
                given=f"{len(broken)} captions, the first one {captions[broken[0]]!r}",
                remedy="encoder.precision=fp32",
            )
        return embeddings.astype(self._dtype, copy=False), self._encoder.truncated - before

    def write(self, number: int, embeddings: np.ndarray, truncated: int) -> None:
        """Write the shard, and that it is complete."""
        write_embeddings(self._directory, number, embeddings)
        shard = Shard(
            rows=len(embeddings),
            truncated=truncated,
            embeddings_sha256=file_sha256(embeddings_path(self._directory, number)),
            captions_sha256=file_sha256(rows_path(self._directory, number)),
        )
        write_json(_done_path(self._directory, number), asdict(shard))


def is_encoded(directory: Path, number: int) -> bool:
    """Whether shard `number` is complete."""
    return _done_path(directory, number).is_file() and embeddings_path(directory, number).is_file()


def read_shard(directory: Path, number: int) -> Shard:
    """What was made of shard `number`."""
    return Shard(**json.loads(_done_path(directory, number).read_text(encoding="utf-8")))


def _done_path(directory: Path, number: int) -> Path:
    return directory / "encoded" / f"{number:05d}.json"


def _read_captions(path: Path) -> list[str]:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all().column("caption").to_pylist()  # type: ignore[no-any-return]
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable("The captions of a shard cannot be read", path, error) from error
