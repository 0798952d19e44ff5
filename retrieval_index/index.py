"""`CaptionIndex`: build, open and search an index of captions.

index = CaptionIndex.build("captions.txt", "index", EncoderSpec("open_clip", "ViT-B-32", "laion2b_s34b_b79k"))
scores, rows = index.search(encoder.encode_images([picture], batch_size=1), k=10)
index.captions(rows[0])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from retrieval_index.build import build_index
from retrieval_index.checks import check_k, check_width
from retrieval_index.encode import EncoderSource
from retrieval_index.encoders import Encoder, EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import has_faiss
from retrieval_index.faiss_open import check_gpu, faiss_gpus, gpu_obstacle, open_faiss, place_on_gpus
from retrieval_index.manifest import REPLAN, Manifest, read_manifest
from retrieval_index.readers import find_files
from retrieval_index.recall import Queries
from retrieval_index.same_encoder import check_encoder, check_spec
from retrieval_index.searcher import Searcher
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job
from retrieval_index.store import CaptionStore, open_shards

if TYPE_CHECKING:
    from retrieval_index.exact import ExactSearch


class CaptionIndex:
    """An index that is complete on disk; everything large is memory-mapped, so many processes may open it.

    What is opened stays readable: an index that grows meanwhile does not change under its readers.

    Args:
        path: the index directory.
        device: where FAISS searches: "cpu", "cuda" for all its GPUs, or "auto" for GPUs where it has some that can hold
            such an index.
        spread: of several GPUs: "replicate" (each holds all rows) or "shard" (each holds some).

    Raises:
        RetrievalError: no complete index there, or files that are not what the manifest says.
    """

    def __init__(self, path: str | Path, *, device: str = "auto", spread: str = "replicate") -> None:
        self.path = Path(path)
        self._open()
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._device, self._spread = device, spread
        self._exact: dict[str, ExactSearch] = {}
        self._searcher: Searcher | None = None

    def _open(self) -> None:
        """Open all files of one version: where another one took its place meanwhile, those of that one."""
        self.manifest: Manifest = read_manifest(self.path)
        try:
            self._shards = open_shards(self.path, self.manifest)
            self._store = CaptionStore(self.path, self.manifest)
            self._file = _open_index_file(self.path, self.manifest)
        except RetrievalError:
            if read_manifest(self.path) == self.manifest:
                raise
            self._open()

    @classmethod
    def build(
        cls,
        captions: str | Path | Sequence[str | Path],
        out: str | Path,
        spec: EncoderSpec,
        *,
        encoder: Encoder | None = None,
        device: str = "auto",
        queries: Callable[[], Queries] | None = None,
        **settings: Any,
    ) -> CaptionIndex:
        """Read caption files, build their index at `out` and open it; `settings` are those of `IndexSettings`.

        The encoder is loaded on `device` unless a loaded one is given. `queries` as in `Job`.
        """
        files = find_files([captions] if isinstance(captions, (str, Path)) else captions)
        loaded = encoder if encoder is not None else load_encoder(spec, device=device)
        job = Job(loaded, EncoderSource(spec, device), IndexSettings(**settings), queries)
        build_index(files, Path(out), job)
        return cls(out)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Encoder | None = None,
        spec: EncoderSpec | None = None,
        device: str = "auto",
        spread: str = "replicate",
    ) -> CaptionIndex:
        """Open an index, and refuse it if it was made with another encoder than `spec` names or `encoder` is.

        Raises:
            RetrievalError: as the class, and for another name, width or golden embedding of the encoder.
        """
        index = cls(path, device=device, spread=spread)
        if spec is not None:
            check_spec(index.manifest.encoder, spec, index.path)
        if encoder is not None:
            index.check_encoder(encoder)
        return index

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def spec(self) -> EncoderSpec:
        """The encoder as it was asked for when the index was built."""
        record = self.manifest.encoder
        return EncoderSpec(record.kind, record.name, record.pretrained)

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise RetrievalError unless the loaded encoder has this index' width and golden embeddings."""
        check_encoder(self.manifest.encoder, encoder, self.path)

    def search(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest captions by inner product: with FAISS, or exactly with torch where there is no FAISS.

        Args:
            embeddings: queries `[queries, width]` float32, L2-normalised.
            k: neighbours per query.

        Returns:
            Scores `[queries, k]` float32, descending, and rows `[queries, k]` int64, the ids that `captions` takes.

        Raises:
            RetrievalError: `k` outside of 1..captions (1..2048 on a GPU), or queries of another width.
        """
        check_k(k, self.manifest.rows)
        check_width(embeddings, self.manifest.width)
        if self._searcher is None:
            if not has_faiss():
                return self.search_exact(embeddings, k, device="cpu" if self._device == "auto" else self._device)
            self._searcher = self._open_searcher()
        return self._searcher.search(embeddings, k)

    def search_exact(
        self, embeddings: np.ndarray, k: int, *, device: str = "cpu", report: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The exact neighbours by blocks with torch and without FAISS, on any device; see `ExactSearch.search`."""
        if device not in self._exact:
            from retrieval_index.exact import ExactSearch  # brings torch

            self._exact[device] = ExactSearch(self._shards, device=device)
        return self._exact[device].search(embeddings, k, report)

    def captions(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Captions of rows `[rows]`, in their order."""
        return self._store.captions(rows)

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Ids of rows `[rows]`: of the first record that held the caption."""
        return self._store.ids(rows)

    def embeddings(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The stored embeddings `[rows, width]` float32 of rows, in their order."""
        wanted = np.asarray(rows, dtype=np.int64)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        result = np.empty((len(wanted), self.manifest.width), dtype=np.float32)
        for number in np.unique(shards).tolist():
            places = np.flatnonzero(shards == number)
            result[places] = self._shards[number][wanted[places] - self._starts[number]]
        return result

    @property
    def store(self) -> CaptionStore:
        """All captions with all their ids and counts."""
        return self._store

    def _open_searcher(self) -> Searcher:
        record = self.manifest.index
        index = open_faiss(self._file, self.path / record.file, self.manifest.rows, self.manifest.width)
        if self._device == "auto":
            gpu = faiss_gpus() > 0 and gpu_obstacle(record.plan, record.search) is None
        else:
            gpu = self._device != "cpu"
            if gpu:
                check_gpu(record.plan, record.search)
        placed = place_on_gpus(index, self._spread) if gpu else index
        return Searcher(placed, record.search, self.embeddings, gpu=gpu)


def _open_index_file(directory: Path, manifest: Manifest) -> BinaryIO:
    """The FAISS file, opened so that it can be mapped later even if a growth has removed its name by then."""
    path = directory / manifest.index.file
    try:
        file = open(path, "rb")
    except OSError as error:
        raise RetrievalError("The FAISS index cannot be read", given=f"{path}: {error}", remedy=REPLAN) from error
    size = path.stat().st_size
    if size != manifest.index.bytes:
        file.close()
        raise RetrievalError(
            "The FAISS index is not what the manifest says",
            given=f"{path}: {size} bytes",
            allowed=f"{manifest.index.bytes} bytes",
            remedy=REPLAN,
        )
    return file
