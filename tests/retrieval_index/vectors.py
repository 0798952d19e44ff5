"""Vectors for tests of the index: clustered captions, and picture-like queries that lie beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_index.vectors import Vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def captions_and_pictures(rows: int, queries: int, width: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[rows, width]` around topics, and `[queries, width]` of the same topics moved by a common gap."""
    generator = np.random.default_rng(seed)
    topics, gap = generator.standard_normal((40, width)), generator.standard_normal(width)
    captions = topics[generator.integers(0, 40, rows)] + 0.8 * generator.standard_normal((rows, width))
    pictures = (
        0.7 * topics[generator.integers(0, 40, queries)] + generator.standard_normal((queries, width)) + 1.5 * gap
    )
    return unit(captions), unit(pictures)


def write_vectors(directory: Path, vectors: np.ndarray, *, files: int = 3) -> Vectors:
    """The vectors in several .npy files of different sizes."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{number}.npy" for number in range(files)]
    borders = [len(vectors) * number * (number + 1) // (files * (files + 1)) for number in range(1, files)]
    for path, part in zip(paths, np.split(vectors, borders), strict=True):
        np.save(path, part)
    return Vectors(paths)
