"""The same build on a Ray cluster: shards and parts of an index are made by Ray Data actors.

Every actor loads the encoder once and calls `ShardEncoder`, the function that `LocalEngine` calls, so the files are
the same byte for byte (on the same kind of processor and with the same number of threads). The index directory must lie
on a file system that all machines share. Needs `pip install 'tga-vlm[ray]'`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrieval_index.approximate import PartWriter
from retrieval_index.checks import check_count, is_number
from retrieval_index.encode import EncoderSource, ShardEncoder, is_encoded
from retrieval_index.encoders import Encoder
from retrieval_index.engines import Report
from retrieval_index.errors import RetrievalError

CPUS_PER_ACTOR = 4  # of a machine without GPUs, where the number of actors is not given


class ShardActor:
    """Holds an encoder, and makes shards by number."""

    def __init__(self, directory: str, source: EncoderSource, batch_size: int, dtype: str) -> None:
        self._make = ShardEncoder(Path(directory), source.load(), batch_size=batch_size, dtype=dtype)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"number"} -> {"rows"}."""
        return {"rows": self._make(int(row["number"]))}


class PartActor:
    """Makes parts of an index by number."""

    def __init__(self, writer: PartWriter, threads: int) -> None:
        from retrieval_index.faiss_env import import_faiss

        import_faiss().omp_set_num_threads(threads)
        self._writer = writer

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"number"} -> {"rows"}."""
        return {"rows": self._writer(int(row["number"]))}


class RayEngine:
    """Actors of a Ray cluster.

    Args:
        address: of a running cluster, or "auto"; None starts one on this machine.
        actors: how many; None: one per GPU, or per `CPUS_PER_ACTOR` processors.
        gpus: per actor, may be a fraction; None: 1 where the cluster has GPUs, else 0.
        cpus: per actor.

    Raises:
        RetrievalError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self, address: str | None = None, actors: int | None = None, gpus: float | None = None, cpus: float = 1
    ) -> None:
        if actors is not None:
            check_count(actors, "ray.actors", "ray.actors=null")
        for name, value in (("gpus", gpus), ("cpus", cpus)):
            if value is not None and not (is_number(value) and value >= 0):
                raise RetrievalError(f"ray.{name} is a number from 0", given=value, remedy=f"ray.{name}=1")
        # Ray's own log tells every try to reach a cluster that does not answer.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
        try:
            import ray
        except ImportError as error:
            raise RetrievalError(
                "Ray is not installed", given="engine=ray", remedy="pip install 'tga-vlm[ray]', or engine=local"
            ) from error
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise RetrievalError(
                    f"The Ray cluster cannot be reached: {' '.join(str(error).split())[:200]}",
                    given=address,
                    remedy="ray.address=HOST:PORT of a running one, or ray.address=null to start one here",
                ) from error
        resources = ray.cluster_resources()
        self._gpus = gpus if gpus is not None else min(1.0, float(resources.get("GPU", 0)))
        self._cpus = cpus
        available = resources.get("GPU", 0) / self._gpus if self._gpus else resources.get("CPU", 1) / CPUS_PER_ACTOR
        self._actors = actors or max(1, int(available))

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
        """See `Engine`; actors load the encoder that `source` names, and `encoder` is not used."""
        missing = [number for number in shards if not is_encoded(directory, number)]
        done = sum(rows for number, rows in shards.items() if number not in missing)
        report(done)
        arguments = (str(directory), with_threads(source), batch_size, dtype)
        for rows in self._map(ShardActor, arguments, missing, gpus=self._gpus):
            done += rows
            report(done)

    def run_parts(self, writer: PartWriter, numbers: Sequence[int], report: Report) -> None:
        """See `Engine`; FAISS uses a processor only."""
        from retrieval_index.faiss_env import faiss_threads

        missing = [number for number in numbers if not writer.path(number).exists()]
        done = 0
        for rows in self._map(PartActor, (writer, faiss_threads()), missing, gpus=0):
            done += rows
            report(done)

    def _map(self, actor: type, arguments: tuple[Any, ...], numbers: Sequence[int], *, gpus: float) -> Iterator[int]:
        """Rows of each number, as the actors finish."""
        import ray

        if not numbers:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        dataset = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        made = dataset.map(
            actor,
            fn_constructor_args=arguments,
            concurrency=min(self._actors, len(numbers)),
            num_cpus=self._cpus,
            num_gpus=gpus or None,
        )
        for row in made.iter_rows():
            yield int(row["rows"])


def with_threads(source: EncoderSource) -> EncoderSource:
    """The source with the threads of this process, which decide the last bits of sums on a CPU."""
    import torch

    return dataclasses.replace(source, threads=torch.get_num_threads()) if source.threads is None else source
