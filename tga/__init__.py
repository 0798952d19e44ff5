"""tga: vision-language projectors that inherit the safety of their language model."""

from __future__ import annotations

__version__ = "0.1.0"
