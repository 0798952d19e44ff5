"""The store of text targets: what is written is read, what is missing is found, what is broken is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tga.alignment import text_targets
from tga.alignment.text_targets import TargetsIdentity, TextTargetStore, human_size, text_key
from tga.errors import UserError

IDENTITY = TargetsIdentity("llm", "tokenizer", "float32 in 32-true", 99, (0, 2), 3)
TEXTS = ["one", "two words", "three words here", "four", "five !"]


def state(text: str) -> Tensor:
    """A value of its own for each text, `[layers, width]`."""
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(text_key(text) & 0xFFFF))


def pool(texts: Sequence[str]) -> Tensor:
    return torch.stack([state(text) for text in texts], dim=1)


def add(store: TextTargetStore, texts: Sequence[str], computed: list[int] | None = None, batch_size: int = 2) -> None:
    store.add(texts, pool, batch_size=batch_size, on_batch=(computed if computed is not None else []).append)


def test_what_is_written_is_read_in_any_order_and_by_another_process(tmp_path: Path) -> None:
    store = TextTargetStore(tmp_path, IDENTITY)
    add(store, TEXTS)
    wanted = ["four", "", "one", "four"]
    expected = torch.stack([state("four"), torch.zeros(2, 3), state("one"), state("four")], dim=1)
    assert torch.equal(store(wanted), expected) and store(wanted).is_contiguous()
    assert torch.equal(TextTargetStore(tmp_path, IDENTITY)(wanted), expected)
    assert torch.equal(pickle.loads(pickle.dumps(store))(wanted), expected)


def test_plain_means_keep_the_place_that_they_had_before_there_were_weights() -> None:
    fields = {
        "language_model": "llm", "tokenizer": "tokenizer", "precision": "float32 in 32-true", "max_length": 99,
        "layers": [0, 2], "width": 3, "dtype": "float32",
    }  # fmt: skip
    assert IDENTITY.digest == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    assert dataclasses.replace(IDENTITY, pooling="sif 0123").digest != IDENTITY.digest


def test_only_what_is_missing_is_computed_once_and_the_shortest_first(tmp_path: Path) -> None:
    store = TextTargetStore(tmp_path, IDENTITY)
    assert store.missing(["four", "", "one", "four"]) == ["one", "four"]
    add(store, ["one", "four"])
    assert store.missing(TEXTS) == ["five !", "two words", "three words here"]
    computed: list[int] = []
    add(store, store.missing(TEXTS), computed)
    assert computed == [2, 1] and store.missing(TEXTS) == [] and len(store) == 5
    assert torch.equal(store(TEXTS), pool(TEXTS))


def test_a_killed_build_goes_on_behind_its_last_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_targets, "SHARD_BYTES", 2 * IDENTITY.row_bytes)
    done: list[int] = []

    def dying(texts: Sequence[str]) -> Tensor:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(len(texts))
        return pool(texts)

    store = TextTargetStore(tmp_path, IDENTITY)
    with pytest.raises(KeyboardInterrupt):
        store.add(TEXTS, dying, batch_size=1, on_batch=lambda count: None)
    again = TextTargetStore(tmp_path, IDENTITY)
    assert len(again) == 2 and again.missing(TEXTS) == ["four", "five !", "three words here"]
    add(again, again.missing(TEXTS))
    assert torch.equal(again(TEXTS), pool(TEXTS))
    assert [path.name for path in sorted(again.directory.glob("targets-*"))] == [
        f"targets-0000{number}.safetensors" for number in range(3)
    ]


def test_a_removed_shard_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_targets, "SHARD_BYTES", 2 * IDENTITY.row_bytes)
    add(TextTargetStore(tmp_path, IDENTITY), TEXTS)
    directory = tmp_path / IDENTITY.digest
    (directory / "targets-00001.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="targets-00001.safetensors.*remove the file"):
        TextTargetStore(tmp_path, IDENTITY)
    (directory / "targets-00001.safetensors").unlink()
    store = TextTargetStore(tmp_path, IDENTITY)
    assert store.missing(TEXTS) == ["four", "three words here"]
    add(store, store.missing(TEXTS))
    assert torch.equal(store(TEXTS), pool(TEXTS))


@pytest.mark.parametrize(
    "other",
    [
        {"language_model": "another"},
        {"tokenizer": "another"},
        {"precision": "bfloat16 in bf16-mixed"},
        {"max_length": 98},
        {"layers": (2, 0)},
        {"dtype": "float16"},
    ],
)
def test_another_model_or_setting_has_its_own_states(tmp_path: Path, other: dict) -> None:
    add(TextTargetStore(tmp_path, IDENTITY), TEXTS)
    changed = dataclasses.replace(IDENTITY, **other)
    assert TextTargetStore(tmp_path, changed).missing(TEXTS)
    manifest = json.loads((tmp_path / IDENTITY.digest / "manifest.json").read_text())
    assert manifest == {**dataclasses.asdict(IDENTITY), "layers": [0, 2]}


@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"), [("float32", 24, 0), ("bfloat16", 12, 8e-3), ("float16", 12, 1e-3)]
)
def test_the_dtype_is_that_of_the_file_alone(tmp_path: Path, dtype: str, size: int, tolerance: float) -> None:
    identity = dataclasses.replace(IDENTITY, dtype=dtype)
    assert identity.row_bytes == size
    store = TextTargetStore(tmp_path, identity)
    add(store, TEXTS)
    found = store(TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool(TEXTS), rtol=tolerance, atol=tolerance)


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TextTargetStore(tmp_path, IDENTITY)
    with pytest.raises(UserError, match="no stored target. Given: unheard"):
        store(["unheard"])
    with pytest.raises(UserError, match=r"needed, .* free at .*data\.targets_dir=ANOTHER"):
        store.require_space(2**55)
    store.require_space(1)
    with pytest.raises(UserError, match="Allowed: float32, bfloat16, float16"):
        dataclasses.replace(IDENTITY, dtype="int8")
    monkeypatch.setattr(text_targets, "text_key", lambda text: 7)
    with pytest.raises(UserError, match="same key"):
        store.missing(["a", "b"])


def test_sizes_for_people() -> None:
    assert human_size(3 * 2**20) == "3.0 MiB" and human_size(82 * 2**30) == "82.0 GiB"
