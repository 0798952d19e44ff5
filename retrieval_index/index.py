"""`CaptionIndex`: build, open and search an index of captions.

index = CaptionIndex.build("captions.txt", "index", EncoderSpec("open_clip", "ViT-B-32", "laion2b_s34b_b79k"))
scores, rows = index.search(encoder.encode_images([picture], batch_size=1), k=10)
index.captions(rows[0])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_index.build import Progress, build_index
from retrieval_index.captions import read_corpus
from retrieval_index.encoders import GOLDEN_COSINE, Encoder, EncoderSpec, golden_embedding, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.exact import check_k, check_width, exact_top_k
from retrieval_index.faiss_flat import open_flat
from retrieval_index.store import FLAT_INDEX, CaptionStore, Manifest, open_shards, read_manifest


class CaptionIndex:
    """An index that is complete on disk; everything large is memory-mapped, so many processes may open it.

    Args:
        path: the index directory.

    Raises:
        RetrievalError: no complete index there, or files that are not what the manifest says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._shards = open_shards(self.path, self.manifest)
        self._store = CaptionStore(self.path)
        self._flat: Any = None
        if len(self._store) != self.manifest.rows:
            raise RetrievalError(
                "The caption store is not what the manifest says",
                given=f"{self.path}: {len(self._store)} captions",
                allowed=f"{self.manifest.rows}",
                remedy="build the index again",
            )

    @classmethod
    def build(
        cls,
        captions: str | Path | Sequence[str | Path],
        out: str | Path,
        spec: EncoderSpec,
        *,
        encoder: Encoder | None = None,
        device: str = "auto",
        shard_rows: int = 100_000,
        batch_size: int = 256,
        dtype: str = "float32",
        progress: Progress | None = None,
    ) -> CaptionIndex:
        """Read caption files, build their index at `out` and open it; arguments as in `build_index`.

        The encoder is loaded on `device` unless a loaded one is given.
        """
        paths = [captions] if isinstance(captions, (str, Path)) else captions
        corpus = read_corpus(paths)
        loaded = encoder if encoder is not None else load_encoder(spec, device=device)
        build_index(
            corpus,
            Path(out),
            loaded,
            spec,
            shard_rows=shard_rows,
            batch_size=batch_size,
            dtype=dtype,
            progress=progress,
        )
        return cls(out)

    @classmethod
    def open(cls, path: str | Path, *, encoder: Encoder | None = None, spec: EncoderSpec | None = None) -> CaptionIndex:
        """Open an index, and refuse it if it was made with another encoder than `spec` names or `encoder` is.

        Raises:
            RetrievalError: as the class, and for another name, width or golden embedding of the encoder.
        """
        index = cls(path)
        if spec is not None:
            index.check_spec(spec)
        if encoder is not None:
            index.check_encoder(encoder)
        return index

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def spec(self) -> EncoderSpec:
        """The encoder as it was asked for when the index was built."""
        return EncoderSpec(self.manifest.encoder_kind, self.manifest.encoder_name, self.manifest.encoder_pretrained)

    def check_spec(self, spec: EncoderSpec) -> None:
        """Raise RetrievalError unless `spec` names the encoder of this index."""
        spec.check()
        if spec.identity() != self.manifest.encoder:
            raise self._other_encoder(
                f"{spec.identity()} ({spec.name})", f"{self.manifest.encoder} ({self.manifest.encoder_name})"
            )

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise RetrievalError unless the loaded encoder has this index' width and golden embedding."""
        if encoder.width != self.manifest.width:
            raise self._other_encoder(f"width {encoder.width}", f"width {self.manifest.width}")
        cosine = float(np.dot(golden_embedding(encoder), np.asarray(self.manifest.golden_embedding)))
        if not cosine >= GOLDEN_COSINE:
            raise self._other_encoder(
                f"an encoder whose vector of the golden sentence has cosine {cosine:.4f} to the recorded one",
                f"cosine >= {GOLDEN_COSINE}",
            )

    def search(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` nearest captions by inner product, with FAISS.

        Args:
            embeddings: queries `[queries, width]` float32, L2-normalised.
            k: neighbours per query.

        Returns:
            Scores `[queries, k]` float32, descending, and rows `[queries, k]` int64.

        Raises:
            RetrievalError: `k` outside of 1..captions, or queries of another width.
        """
        check_k(k, self.manifest.rows)
        check_width(embeddings, self.manifest.width)
        if self._flat is None:
            self._flat = open_flat(self.path / FLAT_INDEX, self.manifest.rows, self.manifest.width)
        scores, rows = self._flat.search(np.ascontiguousarray(embeddings, dtype=np.float32), k)
        return scores, rows

    def search_exact(
        self, embeddings: np.ndarray, k: int, *, device: str = "cpu", report: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same neighbours by blocks with torch and without FAISS, on any device; see `exact_top_k`."""
        return exact_top_k(embeddings, self._shards, k, device=device, report=report)

    def captions(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Captions of rows `[rows]`, in their order."""
        return self._store.captions(rows)

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Ids of rows `[rows]`: of the first record that held the caption."""
        return self._store.ids(rows)

    @property
    def store(self) -> CaptionStore:
        """All captions with all their ids."""
        return self._store

    def _other_encoder(self, given: str, allowed: str) -> RetrievalError:
        return RetrievalError(
            f"The index {self.path} was made with another encoder",
            given=given,
            allowed=allowed,
            remedy="encoder.name= and encoder.pretrained= of the index, or build another one with out=DIR",
        )
