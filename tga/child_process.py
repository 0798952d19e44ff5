"""Python modules of ours in a process of their own that does not outlive its parent."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a module of ours with this Python.

    -P: a file in the current directory is no module of ours.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment for :func:`module_command`: where the packages lie this process knows already."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def end_without(parent: int, *, every_s: float = 1.0) -> None:
    """End this process, at once and with code 1, when `parent` is no longer its parent: nobody wants its work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
