"""Held-out queries to measure an index with: pictures in files, vectors in a .npy file, or captions of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval_index.batching import Picture
from retrieval_index.checks import check_width
from retrieval_index.encoders import Encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.recall import Queries
from retrieval_index.vectors import Vectors, uniform_sample

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SEED = 20_260_102


def read_queries(path: str | Path, encoder: Encoder, *, count: int, batch_size: int) -> Queries:
    """Queries from a folder of pictures, a glob pattern, one picture, or a .npy of vectors `[queries, width]`.

    Raises:
        RetrievalError: nothing there, or pictures for an encoder that reads text only.
    """
    place = Path(path)
    if place.suffix == ".npy" and place.is_file():
        try:
            vectors = np.load(place, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise RetrievalError(
                "A file of query vectors cannot be read", given=f"{place}: {error}", remedy="index.queries=PATH"
            ) from error
        check_width(vectors, encoder.width)
        return Queries(vectors[uniform_sample(len(vectors), min(count, len(vectors)), SEED)], "vectors")
    return picture_queries(find_pictures(path), encoder, count=count, batch_size=batch_size)


def find_pictures(path: str | Path) -> list[Path]:
    """The pictures of a folder (searched whole), of a glob pattern, or the one that is named.

    Raises:
        RetrievalError: there are none.
    """
    place = Path(path)
    inside = place.rglob("*") if place.is_dir() else place.parent.glob(place.name)
    found = sorted(file for file in inside if file.suffix.lower() in PICTURES and file.is_file())
    if not found:
        raise RetrievalError(
            "There are no pictures here to measure recall with",
            given=path,
            allowed=f"a folder or pattern of {', '.join(PICTURES)}, or a .npy of vectors",
            remedy="index.queries=PATH",
        )
    return found


def picture_queries(pictures: Sequence[Picture], encoder: Encoder, *, count: int, batch_size: int) -> Queries:
    """Queries from at most `count` of some pictures, drawn uniformly."""
    drawn = uniform_sample(len(pictures), min(count, len(pictures)), SEED)
    vectors = encoder.encode_images([pictures[place] for place in drawn.tolist()], batch_size=batch_size)
    return Queries(vectors, "pictures")


def caption_queries(vectors: Vectors, count: int) -> Queries:
    """Queries from at most `count` rows of the corpus itself, drawn uniformly; none counts as its own neighbour."""
    own = uniform_sample(len(vectors), min(count, len(vectors)), SEED)
    return Queries(vectors.take(own), "captions", own)
