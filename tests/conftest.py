"""What holds for every test: no network, one thread per test process, GPU tests only where a GPU is.

The tiers are chosen by markers (pyproject.toml): the default, `slow`, `gpu` and `wheel`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

# Before anything imports them: the hub's clients read these once, and child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", ""}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny tensors: a second thread costs more than it brings, and one gives the same sums on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse connections that leave the machine, so that no test depends on a hub without saying so."""
    patch = pytest.MonkeyPatch()
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family != socket.AF_UNIX and host not in LOCAL_HOSTS:
            raise RuntimeError(f"a test tried to reach {address!r}; the tests need no network")
        connect(self, address)  # type: ignore[arg-type]

    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()
