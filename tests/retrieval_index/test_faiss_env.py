"""The two builds of FAISS that must not stand side by side."""

from __future__ import annotations

from importlib import metadata, util
from types import SimpleNamespace

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import check_faiss, import_faiss


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda: [SimpleNamespace(metadata={"Name": name}) for name in names])


def test_two_builds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "numpy", "faiss_cpu", "faiss-gpu-cu12")
    with pytest.raises(
        RetrievalError, match="Given: faiss-cpu, faiss-gpu-cu12.*pip uninstall -y faiss-cpu faiss-gpu-cu12"
    ):
        check_faiss()


@pytest.mark.parametrize("name", ["faiss-cpu", "faiss-gpu"])
def test_one_build_is_accepted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    installed(monkeypatch, "numpy", name)
    check_faiss()


def test_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(RetrievalError, match="not installed"):
        check_faiss()


def test_the_builds_are_looked_for_once_and_not_at_every_search(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = import_faiss()
    installed(monkeypatch, "faiss-cpu", "faiss-gpu")  # reading the metadata of all packages takes longer than a search
    assert import_faiss() is faiss
