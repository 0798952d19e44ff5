"""What a config may name in words: objectives and worlds, registered by installed packages as entry points.

A config holds names, never import paths: whoever writes a config, or sends one along with a checkpoint, chooses among
what is installed and cannot have anything else imported or called. A package adds to a group in its metadata:

    [options.entry_points]
    tga.objectives =
        mine = my_package.my_module:MyObjective

A class that no package registers is named `my_module:MyObjective` by its user, on the own command line.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping
from importlib.metadata import EntryPoint, distributions
from typing import Any

from tga.errors import UserError

OBJECTIVES = "tga.objectives"
WORLDS = "tga.worlds"


def names(group: str) -> list[str]:
    """The names registered in a group, sorted."""
    return sorted(_entries(group))


def registered(group: str, name: Any, *, key: str, own: Collection[str] = ()) -> Any:
    """What stands behind a name.

    Args:
        group: OBJECTIVES or WORLDS.
        name: as a config says it.
        key: the key that says it, for the error.
        own: import paths `module:attribute` that the user named personally; of these `name` may be one.

    Raises:
        UserError: no such name; an import path that is not among `own`, or leads nowhere.
    """
    found = _entries(group)
    if isinstance(name, str) and name in found:
        return found[name].load()
    if isinstance(name, str) and ":" in name:
        return _imported(name, key, own)
    raise UserError(
        f"{key} names nothing that is registered as {group}",
        given=name,
        allowed=", ".join(sorted(found)),
        remedy=f"{key}=NAME, or {key}=MODULE:NAME on your own command line",
    )


def made(factory: Any, settings: Mapping[str, Any], *, key: str) -> Any:
    """`factory(**settings)`, with one error for keys that it does not take or misses.

    Raises:
        UserError: as above; what `factory` itself raises passes.
    """
    takes = inspect.signature(factory)
    try:
        takes.bind(**settings)
    except TypeError as error:
        raise UserError(
            f"{key} does not have the keys it takes ({error})",
            given=", ".join(map(str, settings)) or "none",
            allowed=", ".join(takes.parameters),
            remedy=f"{key}.KEY=VALUE",
        ) from error
    return factory(**settings)


def _entries(group: str) -> dict[str, EntryPoint]:
    """All of a group, of every distribution found.

    `importlib.metadata.entry_points` asks one of each name: an egg-info that an old build left in a source tree would
    hide what is installed.
    """
    return {entry.name: entry for found in distributions() for entry in found.entry_points if entry.group == group}


def _imported(path: str, key: str, own: Collection[str]) -> Any:
    if path not in own:
        raise UserError(
            "A config may not have code imported by its path",
            given=f"{key}={path}",
            allowed="the name of something registered, or a path on your own command line",
            remedy=f"{key}={path} on the command line, if the code is yours or you have read it",
        )
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"Nothing can be imported from there ({error})",
            given=f"{key}={path}",
            allowed="MODULE:NAME of an importable module",
            remedy="correct it, or put its directory on PYTHONPATH",
        ) from error
    if not callable(found):
        raise UserError("What stands there cannot be called", given=f"{key}={path}", remedy="name a class")
    return found
