"""What every command shares: the Hydra entry point, errors as one message, plain values, and the run directory.

A command is a function `(config) -> output directory`, wrapped by :func:`hydra_command`. A mistake of the user (an
unknown experiment, a missing file, a layer that does not exist) ends in one message on stderr and exit code 1; a
defect of the program ends in its traceback. Configuration objects stop here: :func:`plain` turns them into values once,
nothing resolves a value again, and no value is ever called (`tga.registry`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retrieval_index.errors import RetrievalError
from tga.cli.help import HELP, help_text, unknown_key
from tga.cli.locks import exclusive_within
from tga.cli.rerun import refuse_rerun
from tga.cli.value_checks import refuse, value_problems
from tga.errors import UserError
from tga.files import atomic_path, write_json
from tga.registry import WORLDS, made, names, registered
from tga.terminal import say, say_lines

CONFIG_PACKAGE = "pkg://tga.conf"
PACKAGES = (
    "tga-vlm", "torch", "torchvision", "transformers", "tokenizers", "lightning", "hydra-core", "open_clip_torch",
    "sentence-transformers", "faiss-cpu", "faiss-gpu", "pyarrow", "safetensors", "numpy", "pillow",
)  # fmt: skip
# Where a run stands, how it is continued and how its export is checked is not part of what it computes.
NOT_HASHED = ("run_dir", "report_dir", "ckpt_path", "verify")


def hydra_command(
    config_name: str, *, missing_allowed: bool = False, values_checked: bool = True
) -> Callable[[Callable[[DictConfig], Path | None]], Callable[[], None]]:
    """Wrap `command(config) -> output directory` as a console entry point that composes `conf/<config_name>.yaml`.

    missing_allowed: the command itself says what it lacks; otherwise a `???` left in the config is an error.
    values_checked: a value of another kind than its key's is an error (`tga.cli.value_checks`); False: the command
        itself says so, with all else that is wrong.

    The returned function takes its arguments from `sys.argv`, prints the output directory at the end, and leaves the
    process with exit code 1 and one message after a user's mistake.
    """

    def decorate(command: Callable[[DictConfig], Path | None]) -> Callable[[], None]:
        @functools.wraps(command)
        def task(config: DictConfig) -> None:
            with _past_hydra():
                if not missing_allowed:
                    _refuse_missing_values(config)
                if values_checked:
                    refuse(value_problems(plain(config)))
                output = command(config)
            if output is not None:
                say(f"Output directory: {output}")

        run = hydra.main(version_base="1.3", config_path=CONFIG_PACKAGE, config_name=config_name)(task)

        @functools.wraps(command)
        def entry() -> None:
            traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
            try:
                with _hydra_raises():
                    refuse_rerun(sys.argv[1:])
                    if any(argument in HELP for argument in sys.argv[1:]):
                        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
                        say_lines(help_text(config_name, overrides))
                    else:
                        run()
            except KeyboardInterrupt:
                say("Interrupted.", file=sys.stderr)
                sys.exit(130)
            except (Exception, _Mistake) as stopped:
                error = stopped.error if isinstance(stopped, _Mistake) else stopped
                message = describe_error(error)
                if isinstance(error, ConfigCompositionException):
                    chain = f"{error} {error.__cause__}"
                    message = str(unknown_key(config_name, chain) or message)
                if message is None or traceback_wanted:
                    raise error from error.__cause__
                say_lines(f"Error: {message}", file=sys.stderr)
                sys.exit(1)

        return entry

    return decorate


class _Mistake(BaseException):
    """Carries a user's mistake out of a job: for every `Exception` there, Hydra prints a line of its own on stderr."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _past_hydra() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if describe_error(error) is None:
            raise
        raise _Mistake(error) from error


def describe_error(error: BaseException) -> str | None:
    """The one message of a user's mistake, found along the chain of causes; None for a defect of the program."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (UserError, RetrievalError)):
            return str(cause)
        cause = cause.__cause__
    if isinstance(error, MissingConfigException):
        return str(_unknown_config(error))
    if isinstance(error, OverrideParseException):
        problem = UserError("An override cannot be read", given=error.override, remedy="write KEY=VALUE; see --help")
        return str(problem)
    if isinstance(error, (ConfigCompositionException, OmegaConfBaseException)):
        parts = [str(error)] + ([str(error.__cause__)] if isinstance(error.__cause__, OmegaConfBaseException) else [])
        text = " ".join(" ".join(parts).split())
        return str(
            UserError(f"The configuration cannot be composed: {text}", remedy="--cfg job prints it, --help its groups")
        )
    return None


def _unknown_config(error: MissingConfigException) -> UserError:
    """An option that a config group does not have, with those it has."""
    if error.missing_cfg_file is None:
        return UserError(" ".join(str(error).split()), remedy="--help lists the config groups")
    group, _, option = error.missing_cfg_file.rpartition("/")
    remedy = f"{group}=NAME (or +{group}=NAME where the command has no default for it)" if group else None
    return UserError(
        f"There is no {group or 'config'} of this name", given=option, allowed=error.options, remedy=remedy
    )


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise what it would otherwise print, so that all errors take one way; the variable is restored."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _refuse_missing_values(config: DictConfig) -> None:
    """Raise one error that names every `???` left in the config."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(
            "Values without a default are missing", given=missing, remedy=" ".join(f"{key}=VALUE" for key in missing)
        )


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain dicts, lists and scalars."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def said_on_the_command_line(group: str) -> frozenset[str]:
    """The texts that this command's own overrides of a group give its keys; none where no command runs."""
    said = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return frozenset(text for override in said for text in texts_of_override(override, group))


def texts_of_override(override: str, group: str) -> Iterator[str]:
    """The texts that an override gives to keys of a group, within lists and mappings too."""
    parsed = OverridesParser.create().parse_override(override)
    if parsed.key_or_group == group or parsed.key_or_group.startswith(f"{group}."):
        yield from _texts(parsed.value())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield str(value)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _texts(entry)


def prepare(config: DictConfig) -> None:
    """Write what a run reads, where `config.prepare.world` names a world; one process at a time.

    A world (`tga.registry.WORLDS`) is a function of `root`, the directory that it fills; it skips what is complete. The
    other keys of the group are its other parameters.
    """
    settings = plain(config.prepare)
    world = settings.pop("world", None)
    if world is None:
        if settings:
            raise UserError(
                "The group prepare has settings and no world",
                given=", ".join(settings),
                allowed=", ".join(names(WORLDS)),
                remedy="prepare.world=NAME, or prepare=none",
            )
        return
    factory = registered(WORLDS, world, key="prepare.world")
    with exclusive_within(Path(config.prepare.root).absolute()):
        made(factory, settings, key="prepare")


def start_run(config: DictConfig, directory: str | Path | None = None) -> Path:
    """Make `directory` (by default `config.run_dir`) with the resolved config as config.yaml; its absolute path."""
    directory = Path(config.run_dir if directory is None else directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory / "config.yaml") as path:
        path.write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    return directory


def config_hash(config: DictConfig | Mapping[str, Any]) -> str:
    """16 hex digits over the resolved config; where the run stands (`NOT_HASHED`) does not count."""
    values = plain(config) if isinstance(config, DictConfig) else dict(config)
    hashed = {key: value for key, value in values.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """`version_<package>` of the installed packages that decide results, plus Python's."""
    found = {"version_python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found["version_" + package.replace("-", "_")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # not installed: it cannot have decided anything
    return found


def write_summary(directory: Path, values: Mapping[str, float | int | str | bool | None], config: DictConfig) -> Path:
    """Write `directory/summary.json`: flat `values`, the config's hash, the time and the versions.

    Raises:
        TypeError: a value that is not a scalar (the summary is the contract with scripts: flat keys, numbers).
    """
    for key, value in values.items():
        if not isinstance(value, (int, float, str, bool, type(None))):
            raise TypeError(f"summary values are scalars; {key!r} is {type(value).__name__}")
    stamp = {"config_hash": config_hash(config), "written_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    path = Path(directory) / "summary.json"
    write_json(path, {**values, **stamp, **versions()})
    return path
