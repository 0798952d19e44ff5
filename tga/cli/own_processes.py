"""The processes that tga-train starts itself, on its own machine: `training.processes`.

This process is the first of them. The others run the same command line with the variables that torchrun would set, so
that everything behind goes on as under torchrun. They say nothing: what one of them wrote is shown when it fails alone.
Nobody outlives anybody: the others end when the first is gone, and the first ends when one of them fails.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tga.child_process import end_without, module_command, module_environment
from tga.cli.common import describe_error
from tga.errors import UserError
from tga.terminal import say
from tga.training.distributed import check_own_processes, is_launched

PARENT = "TGA_TRAIN_PARENT"  # in a process that another one started: whose it is
GRACE_S = 20.0  # a mistake that all of them find is the first one's to tell
FAILS_WITHIN_S = 5.0  # after the first one has lost another
SHOWN_LINES = 30


def with_own_processes(training: Mapping[str, Any]) -> dict[str, Any]:
    """The group `training` as it is for the processes that there are: with one alone DDP has nothing to do."""
    alone = training["processes"] == 1 and not is_launched()
    return {**training, "strategy": "single"} if alone and training["strategy"] == "ddp" else dict(training)


def started_here() -> bool:
    """Whether this process is one of several that tga-train started, the first or another one."""
    return PARENT in os.environ


@contextmanager
def own_processes(training: Mapping[str, Any], *, sweep: bool = False) -> Iterator[None]:
    """Start the others of `training.processes` and let them go on while the block runs.

    Nothing happens where torchrun or srun has launched this process, nor where `processes` is null or 1. At the end
    of the block they have ended; where it raises, they are stopped.

    Args:
        training: the group's values.
        sweep: this is one of several runs of a Hydra multirun, whose command line is not that of one run.

    Raises:
        UserError: see :func:`tga.training.distributed.check_own_processes`; several processes in a sweep.
    """
    if started_here():
        end_without(int(os.environ[PARENT]))
    count = training["processes"]
    check_own_processes(count, training["strategy"], training["accelerator"])
    if count in (None, 1) or is_launched():
        yield
        return
    if sweep:
        raise UserError(
            "A sweep (-m) trains in one process: the others would have to run all of it",
            given=f"training.processes={count}",
            remedy="training.processes=1, or a command for each run",
        )
    shared = _variables(count)
    before = {name: os.environ.get(name) for name in (*shared, "RANK", "LOCAL_RANK", PARENT)}
    with tempfile.TemporaryDirectory() as logs:
        others = [_start(rank, shared, f"{logs}/{rank}.log") for rank in range(1, count)]
        ended = threading.Event()
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0", PARENT: str(os.getppid())})
        threading.Thread(target=_watch, args=(others, logs, ended), daemon=True).start()
        try:
            yield
            for other in others:
                other.wait()
        except Exception as error:
            # Where another one fails this one is cut off from it, and what it then says explains nothing.
            if describe_error(error) is None:
                _tell_who_failed(others, logs, time.monotonic() + FAILS_WITHIN_S)
            raise
        finally:
            ended.set()
            for other in others:
                other.kill()
                other.wait()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _variables(count: int) -> dict[str, str]:
    """What torchrun says to all of its processes, for `count` on this machine alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "own",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _start(rank: int, shared: Mapping[str, str], log: str) -> subprocess.Popen[bytes]:
    environment = {**module_environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with open(log, "wb") as said:
        return subprocess.Popen(
            module_command("tga.cli.train", sys.argv[1:]),
            env=environment | {PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def _watch(others: Sequence[subprocess.Popen[bytes]], logs: str, ended: threading.Event) -> None:
    """End this process where another one has failed and this one has not found out by itself."""
    while not ended.wait(0.5):
        if any(other.poll() not in (None, 0) for other in others) and not ended.wait(GRACE_S):
            _tell_who_failed(others, logs, 0.0)
            for other in others:
                other.kill()
            os._exit(1)


def _tell_who_failed(others: Sequence[subprocess.Popen[bytes]], logs: str, until: float) -> None:
    """Show what the first process said that ended by a failure of its own; wait for one until a monotonic time."""
    while not (failed := [rank for rank, other in enumerate(others, start=1) if other.poll() not in (None, 0)]):
        if time.monotonic() > until:
            return
        time.sleep(0.2)
    rank = failed[0]
    lines = Path(f"{logs}/{rank}.log").read_text(errors="replace").splitlines()[-SHOWN_LINES:]
    first = f"Error: process {rank} of this training ended with code {others[rank - 1].returncode}; it said:"
    say("", first, *lines, file=sys.stderr)


@contextmanager
def share_of_cores(processes_here: int, accelerator: str) -> Iterator[None]:
    """While several processes that tga-train started compute on one CPU, each of them uses its share of the threads."""
    threads = torch.get_num_threads()
    if not started_here() or (accelerator != "cpu" and torch.cuda.is_available()):
        yield
        return
    torch.set_num_threads(max(1, threads // processes_here))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
