"""An encoder without torch, for tests that start processes: word counts, projected; pictures by their mean colours."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrieval_index.batching import Picture, encode_blocks, encode_pictures
from retrieval_index.encode import EncoderSource
from retrieval_index.encoders import EncoderSpec

WIDTH = 16
SOURCE = EncoderSource(EncoderSpec("open_clip", "cheap"))


class CheapEncoder:
    """Vectors of captions are sums of one random vector per word; those of pictures of one per colour channel.

    `stop_after` texts it raises KeyboardInterrupt, as a process that is stopped would.
    """

    def __init__(self, *, stop_after: int = 10**9, encodes_images: bool = True, seed: int = 0) -> None:
        self.width, self.encodes_images, self.revision, self.truncated = WIDTH, encodes_images, None, 0
        self.preprocessing: dict[str, Any] = {"words": True}
        self.encoded, self._stop_after, self._seed = 0, stop_after, seed

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        if len(texts) > 1:  # not the golden sentence
            self.encoded += len(texts)
        if self.encoded > self._stop_after:
            raise KeyboardInterrupt

        def encode(block: list[str], rows: np.ndarray) -> np.ndarray:
            return np.stack([self._vector(block[row].lower().split()) for row in rows.tolist()])

        return encode_blocks(texts, batch_size, WIDTH, list, lambda block: None, encode, report)

    def encode_images(
        self, pictures: Sequence[Picture], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        def preprocess(picture: Any) -> np.ndarray:
            return self._vector([f"channel{n}" for n in range(3)], np.asarray(picture, np.float64).mean(axis=(0, 1)))

        return encode_pictures(pictures, batch_size, WIDTH, preprocess, np.stack, report)

    def _vector(self, words: list[str], weights: np.ndarray | None = None) -> np.ndarray:
        vectors = [np.random.default_rng([zlib.crc32(w.encode()), self._seed]).standard_normal(WIDTH) for w in words]
        total = np.average(vectors, axis=0, weights=weights)
        return (total / np.linalg.norm(total)).astype(np.float32)
