"""Kinds of config values: what a key may hold, and a mistake in the words of a command line.

A config is YAML, so `batch_size=abc` arrives as text where a number belongs, and the error that arithmetic would raise
over it says nothing of the key. A kind says what it takes (`allowed`) and whether a value is of it (`holds`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes:
        allowed: in words.
        holds: whether a value is of the kind; it may be given anything that YAML can write.
    """

    allowed: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        """One or the other."""
        return Kind(f"{self.allowed}, or {other.allowed}", lambda value: self.holds(value) or other.holds(value))


NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
MAPPING = Kind("{KEY: VALUE, ...}", lambda value: isinstance(value, dict))


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number."""
    said = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    return Kind(said, lambda value: _is_whole(value) and least <= value and (most is None or value <= most))


def number(least: float, most: float = math.inf, *, above: bool = False, below: bool = False) -> Kind:
    """A finite number; `above`: larger than `least`, `below`: smaller than `most`."""

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        high = value < most if below else value <= most
        return high and (value > least if above else value >= least)

    said = "a number" + ("" if least == -math.inf else f" {'above' if above else 'from'} {least:g}")
    return Kind(said + ("" if most == math.inf else f" {'below' if below else 'to'} {most:g}"), holds)


def word(*options: str) -> Kind:
    """One of a few words."""
    return Kind(", ".join(options), lambda value: value in options)


def each(kind: Kind, *, length: int | None = None) -> Kind:
    """A list whose entries are all of a kind; a text is none, although it has letters."""
    said = f"a list [..., ...]{'' if length is None else f' of {length}'}, each {kind.allowed}"

    def holds(value: Any) -> bool:
        listed = isinstance(value, Sequence) and not isinstance(value, str)
        return listed and (length is None or len(value) == length) and all(kind.holds(entry) for entry in value)

    return Kind(said, holds)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_device(value: Any) -> bool:
    import torch  # here: most values need no torch, and some commands none at all

    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", str(value))
    if found is None or not str(value).startswith("cuda"):
        return found is not None
    return int(found[1] or 0) < torch.cuda.device_count()


def _is_flash(value: Any) -> bool:
    from transformers.utils import is_flash_attn_2_available

    return value == "flash_attention_2" and is_flash_attn_2_available()


def _is_directory(value: Any) -> bool:
    place = Path(str(value))
    return not place.exists() or place.is_dir()


WHOLE = Kind("a whole number", _is_whole)
TEXT = Kind("text", lambda value: isinstance(value, (str, int, float)) and not isinstance(value, bool))
TEXTS = replace(each(TEXT), allowed="a list of texts [A, B]")
LAYERS = each(whole(0)) | word("all", "located")
DEVICE = Kind("auto, cpu, or a CUDA device that torch finds here (cuda, cuda:1)", _is_device)
ATTENTION = word("sdpa", "eager") | Kind("flash_attention_2 where flash-attn is installed", _is_flash)
DIRECTORY = Kind("a directory, or a path where nothing is", _is_directory)
