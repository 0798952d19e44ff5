"""kill -9 at any moment: started again, a build and a growth end with the same bytes as undisturbed ones."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_index.index import CaptionIndex
from tests.retrieval_index.cheap_encoder import WIDTH
from tests.retrieval_index.test_build import contents
from tests.retrieval_index.vectors import unit
from tests.tiny_clip import random_captions

CAPTIONS = random_captions(900)
QUERIES = unit(np.random.default_rng(9).standard_normal((8, WIDTH)))


def run(mode: str, directory: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.retrieval_index.killed", mode, str(directory), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def complete(mode: str, directory: Path) -> None:
    process = run(mode, directory)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index as built, and a copy of it as grown."""
    root = tmp_path_factory.mktemp("undisturbed")
    for name, captions in {"build1": CAPTIONS[:400], "build2": CAPTIONS[300:700], "append": CAPTIONS[600:]}.items():
        (root / f"{name}.txt").write_text("\n".join(captions), encoding="utf-8")
    complete("build", root)
    shutil.copytree(root / "index", root / "built")
    complete("append", root)
    return root


def copy_of(undisturbed: Path, directory: Path, *, built: bool) -> Path:
    for file in undisturbed.glob("*.txt"):
        shutil.copy(file, directory)
    if built:
        shutil.copytree(undisturbed / "built", directory / "index")
    return directory


def test_the_undisturbed_index_is_what_the_kill_tests_take_it_for(undisturbed: Path) -> None:
    built, grown = CaptionIndex.open(undisturbed / "built"), CaptionIndex.open(undisturbed / "index")
    assert (len(built), len(grown)) == (700, 900)
    assert built.manifest.index.plan["part_rows"] == 200 and len(grown.manifest.shards) == 5 + 2
    assert grown.captions(range(900)) == CAPTIONS


def some(in_every_run: set[int], *others: int) -> list[Any]:
    """Numbers of renames; those beside the few of every run are slow tests, as each starts two processes."""
    return [
        pytest.param(number, marks=() if number in in_every_run else pytest.mark.slow)
        for number in sorted(in_every_run | {*others})
    ]


# A build renames some thirty times: the first, the middle and the last of each stage.
@pytest.mark.parametrize("renames", some({6, 21}, 1, 4, 9, 12, 16, 24, 26))
def test_a_build_ended_at_a_rename(undisturbed: Path, tmp_path: Path, renames: int) -> None:
    directory = copy_of(undisturbed, tmp_path, built=False)
    process = run("build", directory, renames)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (directory / "index").exists()
    complete("build", directory)
    assert contents(directory / "index") == contents(undisturbed / "built")


@pytest.mark.parametrize("renames", some({19}, 2, 7, 12, 17, 21, 23))
def test_a_growth_ended_at_a_rename(undisturbed: Path, tmp_path: Path, renames: int) -> None:
    directory = copy_of(undisturbed, tmp_path, built=True)
    reader = CaptionIndex.open(directory / "index")
    process = run("append", directory, renames)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(CaptionIndex.open(directory / "index")) == 700
    complete("append", directory)
    assert contents(directory / "index") == contents(undisturbed / "index")
    # The reader of the old version had not mapped its FAISS file yet, whose name is gone by now.
    assert not (directory / "index" / reader.manifest.index.file).exists()
    rows = reader.search(QUERIES, 5)[1]
    np.testing.assert_array_equal(rows, CaptionIndex.open(undisturbed / "built").search(QUERIES, 5)[1])
    assert len(reader) == 700 and rows.max() < 700


def test_a_build_killed_again_and_again_at_any_time(undisturbed: Path, tmp_path: Path) -> None:
    directory = copy_of(undisturbed, tmp_path, built=False)
    pauses = np.random.default_rng(0).uniform(0.0, 0.25, size=60)
    kills = 0
    for pause in pauses:
        process = run("build", directory)
        assert process.stdout is not None and process.stdout.readline() == b"started\n"
        time.sleep(pause)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if (directory / "index").exists() or kills == 5:
            break
    complete("build", directory)
    assert kills >= 1
    assert contents(directory / "index") == contents(undisturbed / "built")
