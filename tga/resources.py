"""What a process has used."""

from __future__ import annotations

import resource
import sys


def peak_rss_mib() -> float:
    """The largest resident set of this process so far, in MiB (`getrusage` counts KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
