"""When two captions are the same: after Unicode NFKC, case folding, and runs of white space as one space."""

from __future__ import annotations

import hashlib
import unicodedata

from retrieval_index.files import hash_files

__all__ = ["caption_key", "hash_files", "normalise"]
KEY_BYTES = 16


def normalise(text: str) -> str:
    """The form in which captions are compared: NFKC, case folded, white space collapsed and stripped."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def caption_key(normalised: str) -> bytes:
    """128 bits that stand for a normalised caption: among a billion, two collide with probability 1e-21."""
    return hashlib.blake2b(normalised.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
