"""Whether all files of an index are what the manifest says: all that are not, in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_index.build import build_index
from retrieval_index.errors import RetrievalError
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job
from retrieval_index.verify import verify_index
from tests.retrieval_index.cheap_encoder import SOURCE, CheapEncoder
from tests.tiny_clip import random_captions


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "c.txt").write_text("\n".join(random_captions(25)), encoding="utf-8")
    build_index([tmp_path / "c.txt"], tmp_path / "index", Job(CheapEncoder(), SOURCE, IndexSettings(shard_rows=10)))
    return tmp_path / "index"


def test_a_sound_index(index: Path) -> None:
    told: list[tuple[int, int]] = []
    assert verify_index(index, lambda *counts: told.append(counts)) == 8
    assert told[0] == (0, 8) and told[-1] == (8, 8)


def test_every_damage_is_named(index: Path) -> None:
    shard = index / "shards/00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # of the right size: only its hash tells
    shard.write_bytes(content)
    (index / "duplicates/00000.arrow").unlink()
    with pytest.raises(
        RetrievalError,
        match="2 of 8 files .*00001.npy has changed; .*duplicates/00000.arrow is missing.*overwrite=true",
    ):
        verify_index(index)
