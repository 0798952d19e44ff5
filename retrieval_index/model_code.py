"""Code that comes with a model is never run, and nobody is asked whether it may.

A model's directory can hold Python files that its config names (`auto_map`). Every load passes
`trust_remote_code=False`. That does not reach the configs within a config, nor what a library between us and
transformers loads: there transformers asks on the terminal, and one `y` on standard input is enough.
:func:`own_code_refused` takes the question away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import dynamic_module_utils

ALLOWED_MODELS = "models whose classes are part of the installed libraries"
_OPTION = "trust_remote_code"


class ModelCodeError(Exception):
    """A model cannot be loaded without running code that came with it."""

    def __init__(self) -> None:
        super().__init__("The model brings code of its own, and that is never run")


@contextmanager
def own_code_refused() -> Iterator[None]:
    """Refuse, while the block lasts, what transformers would ask about.

    Raises:
        ModelCodeError: something that is loaded in the block needs code of its own.
    """
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds for an answer: none, and the question is not asked
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if _OPTION in str(error):  # what the libraries say is worded in many ways, and names this option in all of them
            raise ModelCodeError from error
        raise
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
