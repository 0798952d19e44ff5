"""Where the work of a build is done: in this process, or by actors of a Ray cluster, with the same functions.

An engine makes shards (`encode`) and parts of an index (`run_parts`). What it makes does not depend on which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from retrieval_index.approximate import PartWriter
from retrieval_index.encode import EncoderSource, ShardEncoder, is_encoded
from retrieval_index.encoders import Encoder

Report = Callable[[int], None]


class Engine(Protocol):
    """Calls the functions of a build, wherever it does."""

    def encode(
        self,
        directory: Path,
        shards: dict[int, int],
        encoder: Encoder,
        source: EncoderSource,
        *,
        batch_size: int,
        dtype: str,
        report: Report,
    ) -> None:
        """Make the missing ones of `shards` (number -> rows) in `directory`; `report` is told rows done in all."""
        ...

    def run_parts(self, writer: PartWriter, numbers: Sequence[int], report: Report) -> None:
        """Make the missing parts of an index; `report` is told rows done in all."""
        ...


class LocalEngine:
    """In this process; a shard is written by a thread while the next one is encoded."""

    def encode(
        self,
        directory: Path,
        shards: dict[int, int],
        encoder: Encoder,
        source: EncoderSource,
        *,
        batch_size: int,
        dtype: str,
        report: Report,
    ) -> None:
        """See `Engine`; the loaded `encoder` is used and `source` is not."""
        make = ShardEncoder(directory, encoder, batch_size=batch_size, dtype=dtype)
        done = 0
        with ThreadPoolExecutor(1) as pool:
            writing: Future[None] | None = None
            for number, rows in shards.items():
                if not is_encoded(directory, number):
                    embeddings, truncated = make.encode(number, lambda count, done=done: report(done + count))  # type: ignore[misc]
                    if writing is not None:
                        writing.result()
                    writing = pool.submit(make.write, number, embeddings, truncated)
                done += rows
                report(done)
            if writing is not None:
                writing.result()

    def run_parts(self, writer: PartWriter, numbers: Sequence[int], report: Report) -> None:
        """See `Engine`."""
        done = 0
        for number in numbers:
            done += writer(number)
            report(done)
