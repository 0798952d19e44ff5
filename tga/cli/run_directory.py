"""The directories of runs and exports: kept for one command at a time, and never where files of somebody else stand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tga.cli.locks import claimed, claimed_output
from tga.errors import UserError
from tga.evaluation.cells import is_cell
from tga.export.hf import KIND, refuse_foreign_directory
from tga.files import TEMPORARY, listed, marked_files, remove_ours
from tga.run_files import CONFIG, run_files_in


@contextmanager
def run_directory(directory: str | Path, *, option: str = "run_dir") -> Iterator[Path]:
    """Keep the directory of a run for this process and yield its absolute path; it is made, and removed if empty.

    What a killed run left half-written in it is removed.

    option: the command's key for it.

    Raises:
        UserError: another process works there, or the run would replace files that no run wrote.
    """
    path = Path(directory).absolute()
    with claimed(path, option=option):
        _refuse_other_files(path, option)
        _remove_unfinished(path)
        yield path


@contextmanager
def export_directory(output: str | Path, *, option: str) -> Iterator[Path]:
    """Keep the place of an export for this process and yield its absolute path; what a killed one left is removed.

    option: the command's key for it.

    Raises:
        UserError: another process works there, or something stands there that is no earlier export.
    """
    path = Path(output).absolute()
    with claimed_output(path, option=option):
        refuse_foreign_directory(path)
        real = path.resolve()
        for beside in real.parent.iterdir():
            unfinished = TEMPORARY.fullmatch(beside.name)
            if unfinished and unfinished["name"] == real.name and beside.is_dir() and not beside.is_symlink():
                _remove_unfinished_export(beside)
        yield path


def _remove_unfinished_export(directory: Path) -> None:
    """Remove a directory under a temporary name of our own writer.

    One without a mark was being written, by us alone. One with a mark was complete, or stood at the name of the export
    and was being retired: what somebody had added to it stays.
    """
    files = marked_files(directory, KIND)
    if files is None:
        shutil.rmtree(directory)
    else:
        remove_ours(directory, listed(directory, files))


def _refuse_other_files(directory: Path, option: str) -> None:
    """Raise UserError where files stand at a run's names, and no run left its config nor a comparison its record."""
    there = run_files_in(directory)
    if there and not _is_run(directory):
        raise UserError(
            "The run would replace files that no run of tga wrote",
            given=f"{directory}: {', '.join(there[:3])}" + (f" and {len(there) - 3} more" if len(there) > 3 else ""),
            allowed="a new or empty directory, or that of a run",
            remedy=f"{option}=ANOTHER_DIRECTORY",
        )


def _is_run(directory: Path) -> bool:
    """Whether a run wrote the config in a directory (resolved, with its place), or a comparison made the directory."""
    if is_cell(directory):
        return True
    try:
        config = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and "run_dir" in config and "defaults" not in config


def _remove_unfinished(directory: Path) -> None:
    """Remove a run's files under the temporary names of our own writer; nobody else writes here now."""
    for name in run_files_in(directory):
        path = directory / name
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
