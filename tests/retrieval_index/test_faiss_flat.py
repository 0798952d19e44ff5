"""The FAISS file, and the two builds that must not stand side by side."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_flat import check_faiss, open_flat, write_flat


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


def test_written_and_opened(tmp_path: Path) -> None:
    vectors = np.eye(6, 4, dtype=np.float32)
    write_flat(tmp_path / "index" / "flat.faiss", [vectors[:2], vectors[2:]], 4)
    index = open_flat(tmp_path / "index" / "flat.faiss", 6, 4)
    assert index.search(vectors[2:3], 1)[1].tolist() == [[2]]
    with pytest.raises(RetrievalError, match="6 rows of width 4. Allowed: 7 rows of width 4"):
        open_flat(tmp_path / "index" / "flat.faiss", 7, 4)


def test_missing_and_cut_files(tmp_path: Path) -> None:
    path = tmp_path / "flat.faiss"
    with pytest.raises(RetrievalError, match="cannot be read"):
        open_flat(path, 6, 4)
    write_flat(path, [np.ones((6, 4), np.float32)], 4)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RetrievalError, match="cannot be read"):
        open_flat(path, 6, 4)
