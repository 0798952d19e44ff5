"""Hydra's option `--experimental-rerun FILE` unpickles the file, and a pickle can run any code: no command takes it."""

from __future__ import annotations

from collections.abc import Sequence

from tga.errors import UserError

RERUN = "--experimental-rerun"


def refuse_rerun(arguments: Sequence[str]) -> None:
    """Refuse the option in every abbreviation: Hydra's parser takes `--experiment NAME` for one.

    Raises:
        UserError: it stands among `arguments`.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if len(name) > len("--") and RERUN.startswith(name):
            raise UserError(
                f"Hydra takes this for {RERUN} FILE, which would load a pickle, and that can run any code",
                given=argument,
                allowed="KEY=VALUE, and Hydra's other options",
                remedy="+experiment=NAME chooses an experiment",
            )
