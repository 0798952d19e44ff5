"""Synthetic captions, and picture-like queries from another distribution: one modality gap beside them, more noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE_ROWS = 100_000
TOPICS = 5000
WORDS = (
    "a the red blue green big small young old dog cat car tree house bicycle street shop brown white black sleeps "
    "beside in front of on under sits runs table chair ball two three with and picture photo man woman child holding "
    "looking at near water grass train bus plate food pizza kitchen room window standing riding a skateboard "
    "wave beach snow board"
).split()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write_corpus(
    directory: Path, rows: int, width: int, queries: int, *, seed: int = 0
) -> tuple[list[Path], np.ndarray]:
    """Write `rows` caption vectors as .npy files and `queries.npy`; returns files and queries `[queries, width]`.

    A caption is the sum of one of 5000 topics and noise; a query of a topic, more noise, and one vector common to all
    queries, longer than both, as the gap between pictures and captions is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    topics = generator.standard_normal((TOPICS, width), dtype=np.float32)
    gap = generator.standard_normal(width, dtype=np.float32)
    paths = []
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - start)
        captions = topics[generator.integers(0, TOPICS, count)]
        captions += generator.standard_normal((count, width), dtype=np.float32)
        paths.append(directory / f"{number:05d}.npy")
        np.save(paths[-1], unit(captions))
    asked = 0.8 * topics[generator.integers(0, TOPICS, queries)] + 1.5 * gap
    asked += 1.2 * generator.standard_normal((queries, width), dtype=np.float32)
    np.save(directory / "queries.npy", unit(asked))
    return paths, asked


def captions(count: int, *, seed: int = 0) -> list[str]:
    """Captions of 8 to 20 words, about 11 on average, as COCO's are."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.poisson(10.5, count), 8, 20)
    return [" ".join(generator.choice(WORDS, size=int(length))) for length in lengths]
