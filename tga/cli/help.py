"""`--help` of every command: what it does, its config groups, and each key with what its config file says of it.

Hydra's own help knows keys and values; what they mean stands in the comments of the files under `conf/`, and is taken
from there: a file's head, the comment behind a key, and the lines above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from tga.errors import UserError

HELP = ("--help", "-h")
_CONF = "tga.conf"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<rest>.*)$")
_GLOBAL = "# @package _global_"
_NOT_SHOWN = ("defaults", "hydra")


def help_text(config_name: str, overrides: Sequence[str]) -> str:
    """The help of the command whose config is `conf/<config_name>.yaml`, composed under `overrides`."""
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module=_CONF, version_base="1.3"):
        config = compose(config_name, overrides=list(overrides), return_hydra_config=True)
    choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
    ours = {group: option for group, option in choices.items() if not group.startswith("hydra/")}
    main = _file("", config_name)
    comments = key_comments(main)
    for group, option in ours.items():
        # "prepare@_global_.prepare" is a group that another option has set, at its own place. What an experiment says
        # of a value is no better than what the key's own file says of the key.
        comments = _group_comments(group.partition("@")[0], option) | comments
    chosen = {group.partition("@")[0]: option for group, option in ours.items()}
    shown = OmegaConf.to_container(_without_hydra(config), resolve=False)
    assert isinstance(shown, dict)
    parts = [head(main), "", "Keys (KEY=VALUE sets one; ??? must be given):", ""]
    parts += _lines(shown, comments)
    parts += ["", "Config groups (GROUP=NAME; +GROUP=NAME where none is chosen; * is chosen here):"]
    for group in _groups():
        parts += ["", group]
        for option in _options(group):
            star = "*" if chosen.get(group) == option else " "
            first = " ".join(head(_file(group, option)).partition("\nNeeds:")[0].split())
            parts.append(f"  {star} {option}  {first}")
    parts += ["", "--cfg job prints the composed config alone; the pages under docs/ say more."]
    return "\n".join(parts)


def unknown_key(config_name: str, said: str) -> UserError | None:
    """A key that there is not, from what Hydra says of its override, with those like it; None for another mistake."""
    named, missing = (
        re.search(r"Could not override '([^']+)'", said),
        re.search(r"Key '([^']+)' is not in struct", said),
    )
    if named is None or missing is None:
        return None
    key = named[1] if named[1].split(".")[-1] == missing[1] else f"{named[1]}.{missing[1]}"
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module=_CONF, version_base="1.3"):
        config = OmegaConf.to_container(compose(config_name), resolve=False)
    close = get_close_matches(key, list(_keys(config)), 3, 0.7)
    allowed = ", ".join(close) if close else None
    remedy = "--help lists all keys" if not close else f"{close[0]}=VALUE; --help lists all keys"
    return UserError("There is no such key", given=key, allowed=allowed, remedy=remedy)


def _keys(node: Any, before: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{before}{key}"
            yield from _keys(value, f"{before}{key}.")


def head(text: str) -> str:
    """The comment at the beginning of a config file, without its signs; lines that go on are joined."""
    lines: list[str] = []
    for line in text.splitlines():
        if line == _GLOBAL:
            continue
        if not line.startswith("#"):
            break
        if line.startswith("#   ") and lines:
            lines[-1] += " " + line[1:].strip()
        else:
            lines.append(line[1:].strip())
    return "\n".join(lines)


def key_comments(text: str) -> dict[str, str]:
    """Dotted key -> its comment, of a config file: the lines above it, then what stands behind it."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    body = text.split("\n\n", 1)[-1]  # the head is no comment of the first key
    last = ""
    for line in body.splitlines():
        if line.lstrip().startswith("#"):
            if last and len(line) - len(line.lstrip()) > path[-1][0]:  # the comment behind the last key goes on
                found[last] += " " + line.strip()[1:].strip()
            else:
                above.append(line.strip()[1:].strip())
            continue
        match = _KEY.match(line)
        if match is None:
            above = []
            continue
        indent = len(match["indent"])
        path = [*(part for part in path if part[0] < indent), (indent, match["key"])]
        behind = _behind(match["rest"])
        last = ""
        if path[0][1] not in _NOT_SHOWN and (above or behind):
            last = ".".join(key for _, key in path)
            found[last] = " ".join([*above, *([behind] if behind else [])])
        above = []
    return found


def _behind(rest: str) -> str:
    """The comment at the end of a line, outside of quotes."""
    quote = ""
    for place, sign in enumerate(rest):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign == "#" and (place == 0 or rest[place - 1].isspace()):
            return rest[place + 1 :].strip()
    return ""


def _group_comments(group: str, option: str) -> dict[str, str]:
    """The comments of one option of a group, and of the options that it builds upon, by full key."""
    text = _file(group, option)
    found: dict[str, str] = {}
    for entry in yaml.safe_load(text).get("defaults") or () if text.strip() else ():
        if isinstance(entry, str) and entry != "_self_":
            found |= _group_comments(group, entry)
    prefix = "" if text.startswith(_GLOBAL) else f"{group}."
    return found | {prefix + key: comment for key, comment in key_comments(text).items()}


def _lines(node: Mapping[Any, Any], comments: Mapping[str, str], prefix: str = "", indent: str = "  ") -> Iterator[str]:
    for key, value in node.items():
        comment = comments.get(f"{prefix}{key}")
        behind = f"  # {comment}" if comment else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:{behind}"
            yield from _lines(value, comments, f"{prefix}{key}.", indent + "  ")
        else:
            yield f"{indent}{key}: {_inline(value)}{behind}"


def _inline(value: Any) -> str:
    if isinstance(value, str) and ("${" in value or value == "???"):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in _NOT_SHOWN])


def _root() -> Traversable:
    return resources.files(_CONF)


def _file(group: str, option: str) -> str:
    place = _root().joinpath(group, f"{option}.yaml") if group else _root().joinpath(f"{option}.yaml")
    return place.read_text(encoding="utf-8") if place.is_file() else ""


def _groups() -> list[str]:
    return sorted(entry.name for entry in _root().iterdir() if entry.is_dir() and entry.name != "__pycache__")


def _options(group: str) -> list[str]:
    files = (entry.name for entry in _root().joinpath(group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
