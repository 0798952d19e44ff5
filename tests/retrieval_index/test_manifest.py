"""The manifest: written, read, counted, and refused where it is not what it should be."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from retrieval_index.errors import RetrievalError
from retrieval_index.manifest import (
    EncoderRecord,
    IndexRecord,
    Manifest,
    Recall,
    Shard,
    Source,
    read_manifest,
    write_manifest,
)

ENCODER = EncoderRecord("open_clip:x/y", "open_clip", "x", "y", None, {"context": 77}, 2, (0.6, 0.8), (1.0, 0.0))
RECALL = Recall(10, 0.97, 0.002, 500, "pictures", 0.95)
INDEX = IndexRecord(1, "index/00001.faiss", 123, "e" * 64, {"kind": "ivf_flat"}, {"nprobe": 8}, RECALL)
MANIFEST = Manifest(
    encoder=ENCODER,
    sources=(Source("a" * 64, 6, 1, 1, 0, 4), Source("b" * 64, 3, 2, 0, 0, 1)),
    shards=(Shard(2, 0, "c" * 64, "d" * 64), Shard(2, 1, "c" * 64, "d" * 64), Shard(1, 0, "c" * 64, "d" * 64)),
    duplicates_sha256=("f" * 64, "g" * 64),
    dtype="float32",
    shard_rows=2,
    index=INDEX,
)


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    content = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert content["encoder"]["golden_sentence"] == [0.6, 0.8] and content["index"]["recall"]["value"] == 0.97


def test_totals() -> None:
    assert (MANIFEST.rows, MANIFEST.width) == (5, 2)
    assert [MANIFEST.total(name) for name in ("read", "duplicates", "without_caption", "rows")] == [9, 3, 1, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "no complete caption index"),
        ("{", "damaged"),
        ("[]", "has another format"),
        ({"format_version": 1}, "Given: 1. Allowed: 2"),
        ({"dtype": ...}, "damaged"),
        ({"surprise": 1}, "damaged"),
        ({"shards": [{"rows": 2}]}, "damaged"),
        ({"index": None}, "damaged"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, change: object, message: str) -> None:
    if isinstance(change, dict):
        content = {key: value for key, value in (asdict(MANIFEST) | change).items() if value is not ...}
        (tmp_path / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    elif change is not None:
        (tmp_path / "manifest.json").write_text(str(change), encoding="utf-8")
    with pytest.raises(RetrievalError, match=message):
        read_manifest(tmp_path)
