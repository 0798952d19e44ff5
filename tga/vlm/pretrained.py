"""Loading what transformers keeps in a directory or on the hub: one message where that fails, no bar of its own.

transformers draws a bar for every set of weights that it puts into a model. Ours are loaded part by part, several
models in a row, beside progress of our own; so that bar is hidden while we load. Bars of downloads stay.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging

from retrieval_index.model_code import ALLOWED_MODELS, ModelCodeError, own_code_refused
from tga.errors import UserError

WEIGHTS_BAR = "Loading weights"
# What reads a tokenizer.model (Llama 1 and 2, Vicuna, Mistral): where they are missing, transformers takes the file for
# one of tiktoken's and advises that package.
OF_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
SPEAKS_OF_SENTENCEPIECE = re.compile("sentencepiece|tiktoken|protobuf", re.IGNORECASE)


def pretrained(loader: Any, path: str, *, remedy: str, **arguments: Any) -> Any:
    """`loader.from_pretrained(path, **arguments)`, without code that comes with the model.

    Raises:
        UserError: it cannot be loaded from there, or only with code of its own; `remedy` says which setting names the
            path.
    """
    try:
        with without_weights_bar(), without_own_code(path, remedy=remedy):
            return loader.from_pretrained(path, trust_remote_code=False, **arguments)
    except (OSError, ValueError, ImportError) as error:
        missing = [package for module, package in OF_SENTENCEPIECE.items() if not _is_installed(module)]
        if missing and SPEAKS_OF_SENTENCEPIECE.search(str(error)):
            raise UserError(
                f"The tokenizer is a SentencePiece model, and what reads one is not installed: {', '.join(missing)}",
                given=path,
                remedy=f"pip install {' '.join(missing)}",
            ) from error
        if isinstance(error, ImportError):
            raise
        # A path that is no hub id either: what transformers says of it speaks of the form of hub ids.
        no_directory = not Path(path).exists() and (Path(path).is_absolute() or path.count("/") > 1)
        reason = "there is no such directory" if no_directory else str(error).strip().splitlines()[0]
        raise UserError(
            f"Cannot load {loader.__name__} from there: {reason}",
            given=path,
            allowed="a directory in the Hugging Face layout, or a hub id when the hub can be reached",
            remedy=remedy,
        ) from error


@contextmanager
def without_own_code(path: str, *, remedy: str) -> Iterator[None]:
    """For a block that makes a model from a config: code that came with it is not run, and nobody is asked.

    Raises:
        UserError: it needs such code.
    """
    try:
        with own_code_refused():
            yield
    except ModelCodeError as error:
        raise UserError(str(error), given=path, allowed=ALLOWED_MODELS, remedy=remedy) from error


def stored_dtype(path: str, *, remedy: str) -> torch.dtype:
    """The dtype in which a (language) model is stored, as its config says; float32 where it does not say.

    Raises:
        UserError: there is no config.
    """
    config = pretrained(AutoConfig, path, remedy=remedy)
    found = config.dtype or config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


@contextmanager
def without_weights_bar() -> Iterator[None]:
    """Hide the bar of the weights for a block, and leave every other bar and every setting as it was."""
    set_hook: Callable[[Any], Any] | None = getattr(logging, "set_tqdm_hook", None)
    if set_hook is None:  # an older transformers: the bar shows
        yield
        return
    previous = set_hook(None)

    def hidden(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        options = {**kwargs, "disable": True} if kwargs.get("desc") == WEIGHTS_BAR else dict(kwargs)
        return previous(factory, args, options) if previous is not None else factory(*args, **options)

    set_hook(hidden)
    try:
        yield
    finally:
        set_hook(previous)
