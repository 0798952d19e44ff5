"""What encoders share: batches sorted by length, the next block prepared meanwhile, and pictures decoded by threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from retrieval_index.errors import RetrievalError
from retrieval_index.picture_files import read_rgb, reason, to_rgb

# A file, its bytes, or what opens a picture that lies elsewhere (an archive, a table).
Picture = Path | BytesIO | Callable[[], Image.Image]
BLOCK = 16_384  # texts that are tokenized together and sorted by length among themselves
IMAGE_WORKERS = 2
Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def encode_blocks(
    texts: Sequence[str],
    batch_size: int,
    width: int,
    tokenize: Callable[[list[str]], Prepared],
    lengths: Callable[[Prepared], np.ndarray | None],
    encode: Callable[[Prepared, np.ndarray], np.ndarray],
    report: Callable[[int], None] | None,
) -> np.ndarray:
    """Vectors `[texts, width]` float32 in the order given, encoded in batches of similar length.

    Args:
        texts: any number of them.
        batch_size: texts per call of `encode`.
        width: of the vectors.
        tokenize: prepares a block of texts; runs in a thread of its own, one block ahead.
        lengths: of a block's texts, by which they are sorted; None keeps their order.
        encode: vectors `[rows, width]` of rows of a prepared block.
        report: is told how many texts are done.
    """
    result = np.empty((len(texts), width), dtype=np.float32)
    blocks = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
    start = 0
    for block, prepared in zip(blocks, ahead(lambda block: tokenize(list(block)), blocks), strict=True):
        known = lengths(prepared)
        order = np.arange(len(block)) if known is None else np.argsort(known, kind="stable")
        for first in range(0, len(block), batch_size):
            rows = order[first : first + batch_size]
            result[start + rows] = encode(prepared, rows)
            if report is not None:
                report(start + min(first + batch_size, len(block)))
        start += len(block)
    return result


def ahead(prepare: Callable[[Item], Prepared], items: Sequence[Item]) -> Iterator[Prepared]:
    """`prepare` of every item, in order, the next one made by a thread while the last one is used."""
    if len(items) < 2:  # nothing to overlap with: a thread would only cost its start
        yield from map(prepare, items)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(prepare, items[0])
        for following in items[1:]:
            current, waiting = waiting.result(), pool.submit(prepare, following)
            yield current
        yield waiting.result()


def encode_pictures(
    pictures: Sequence[Picture],
    batch_size: int,
    width: int,
    preprocess: Callable[[Image.Image], Prepared],
    encode: Callable[[list[Prepared]], np.ndarray],
    report: Callable[[int], None] | None,
) -> np.ndarray:
    """Vectors `[pictures, width]` float32; threads open and preprocess, the next batch while the last is encoded.

    Raises:
        RetrievalError: a picture that is missing or cannot be decoded.
    """
    result = np.empty((len(pictures), width), dtype=np.float32)
    starts = range(0, len(pictures), batch_size)
    with ThreadPoolExecutor(IMAGE_WORKERS) as workers:

        def prepare(start: int) -> list[Prepared]:
            batch = pictures[start : start + batch_size]
            return list(workers.map(lambda picture: preprocess(open_picture(picture)), batch))

        for start, batch in zip(starts, ahead(prepare, list(starts)), strict=True):
            result[start : start + len(batch)] = encode(batch)
            if report is not None:
                report(start + len(batch))
    return result


def open_picture(picture: Picture) -> Image.Image:
    """A picture in RGB.

    Raises:
        RetrievalError: it is missing or cannot be decoded.
    """
    try:
        if isinstance(picture, (Path, BytesIO)):
            return read_rgb(picture)
        return to_rgb(picture())
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        found = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be decoded"
        name = picture if isinstance(picture, Path) else getattr(picture, "args", picture)
        raise RetrievalError(
            f"A picture {found}", given=f"{name}: {reason(error)}", remedy="replace the file or drop its record"
        ) from error
