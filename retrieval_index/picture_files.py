"""The one place where encoded pictures are opened: six formats, from regular files or from bytes.

Pillow goes by a file's first bytes, not by its name, and knows formats that are programs: PostScript starts
Ghostscript. So only those of `FORMATS` are tried. A FIFO or a device in a picture's place is refused before anything
waits for it. Pillow's bound on the pixels of a picture holds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WebP", "BMP", "GIF", "TIFF")


@contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """The picture with its header read; its pixels are decoded by :func:`to_rgb`, while the block lasts.

    Args:
        source: a regular file, or a stream of the encoded bytes.

    Raises:
        FileNotFoundError: there is no such file, or a link leads nowhere.
        OSError: no regular file, or no picture of the formats that are read.
        Image.DecompressionBombError: a picture of more than twice `Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(source, (str, Path)):
        with open_regular(source) as file, _header(file) as image:
            yield image
    else:
        with _header(source) as image:
            yield image


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded pixels in RGB.

    Raises:
        OSError: bytes that no decoder can read; decoders raise many things, and all of them become this one.
    """
    try:
        return image.convert("RGB")
    except (OSError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        raise OSError(f"the picture is damaged: {error or type(error).__name__}") from error


def read_rgb(source: str | Path | BinaryIO) -> Image.Image:
    """A whole picture in RGB; raises what :func:`opened` and :func:`to_rgb` raise."""
    with opened(source) as image:
        return to_rgb(image)


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open for reading; a FIFO, a device or a directory is refused and nobody waits for it.

    Raises:
        FileNotFoundError: there is no such file, or a link leads nowhere.
        OSError: it is no regular file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        if not os.path.islink(path):
            raise
        raise FileNotFoundError(errno.ENOENT, f"a link to {os.readlink(path)}, which is not there", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def reason(error: Exception) -> str:
    """What is wrong with a picture that could not be opened, without its path, for messages that name it."""
    return getattr(error, "strerror", None) or str(error)


def _header(stream: BinaryIO) -> Image.Image:
    try:
        return Image.open(stream, formats=[name.upper() for name in FORMATS])
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"not a picture of a format that is read: {', '.join(FORMATS)}") from None
    except (OSError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        raise OSError(f"the picture is damaged: {error or type(error).__name__}") from error
