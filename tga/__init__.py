"""tga: vision-language projectors that inherit the safety of their language model."""

from __future__ import annotations

from tga._version import __version__

__all__ = ["__version__"]
