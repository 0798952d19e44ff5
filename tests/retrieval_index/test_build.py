"""Building: what is written, what an interruption leaves, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval_index.build import build_index
from retrieval_index.errors import RetrievalError
from retrieval_index.manifest import Manifest, read_manifest
from retrieval_index.recall import BelowTarget, Queries
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import IDENTITY, Job
from retrieval_index.store import open_shards
from tests.retrieval_index.cheap_encoder import SOURCE, CheapEncoder
from tests.retrieval_index.vectors import unit
from tests.tiny_clip import random_captions

CAPTIONS = random_captions(23)
SMALL = IndexSettings(shard_rows=10, batch_size=4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join([*CAPTIONS, CAPTIONS[0].upper()]), encoding="utf-8")
    return path


def job(encoder: CheapEncoder | None = None, settings: IndexSettings = SMALL, **options: Any) -> Job:
    return Job(encoder or CheapEncoder(), SOURCE, settings, **options)


def contents(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def named(manifest: Manifest) -> dict[str, str]:
    """Path -> hash of all files that a manifest names."""
    found = {manifest.index.file: manifest.index.sha256}
    for number, shard in enumerate(manifest.shards):
        found |= {f"shards/{number:05d}.npy": shard.embeddings_sha256}
        found |= {f"shards/{number:05d}.arrow": shard.captions_sha256}
    return found | {f"duplicates/{n:05d}.arrow": sha256 for n, sha256 in enumerate(manifest.duplicates_sha256)}


def picture_like(count: int) -> Queries:
    vectors = np.random.default_rng(5).standard_normal((count, 16)) + 1.0
    return Queries(unit(vectors), "pictures")


def test_files_hashes_and_vectors(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "index"
    manifest = build_index([file], out, job())
    found = contents(out)
    assert named(manifest) == {name: value for name, value in found.items() if name != "manifest.json"}
    assert read_manifest(out) == manifest
    assert [shard.rows for shard in manifest.shards] == [10, 10, 3]
    assert (manifest.rows, manifest.width, manifest.total("read"), manifest.total("duplicates")) == (23, 16, 24, 1)
    assert manifest.encoder.preprocessing == {"words": True} and len(manifest.encoder.golden_picture or ()) == 16
    assert manifest.index.plan["kind"] == "flat" and manifest.index.recall.of == "nothing"
    flat = faiss.read_index(str(out / manifest.index.file))
    expected = CheapEncoder().encode_texts(CAPTIONS, batch_size=23)
    np.testing.assert_array_equal(flat.reconstruct_n(0, 23), expected)


def test_half_precision_on_disk(tmp_path: Path, file: Path) -> None:
    manifest = build_index([file], tmp_path / "index", job(settings=replace(SMALL, dtype="float16")))
    shards = open_shards(tmp_path / "index", manifest)
    assert shards[0].dtype == np.float16
    expected = CheapEncoder().encode_texts(CAPTIONS, batch_size=4)
    np.testing.assert_allclose(np.concatenate(shards), expected, atol=1e-3)


def test_an_interrupted_build_is_continued_byte_for_byte(tmp_path: Path, file: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "index"
    build_index([file], undisturbed, job())
    with pytest.raises(KeyboardInterrupt):
        build_index([file], out, job(CheapEncoder(stop_after=15)))
    assert not out.exists()
    (tmp_path / "index.building/shards/.00001.npy.17.tmp").write_bytes(b"half a shard")
    encoder = CheapEncoder()
    build_index([file], out, job(encoder))
    assert encoder.encoded == 13  # 10 of 23 were there
    assert contents(out) == contents(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "index", "undisturbed"]


def test_an_interrupted_build_of_other_settings_is_not_continued(tmp_path: Path, file: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index([file], tmp_path / "index", job(CheapEncoder(stop_after=15)))
    encoder, said = CheapEncoder(), []
    build_index([file], tmp_path / "index", job(encoder, replace(SMALL, dtype="float16"), announce=said.append))
    assert encoder.encoded == 23
    assert "an interrupted build left" in said[0] and "is of another dtype: it begins afresh" in said[0]


def test_an_interrupted_build_goes_on_where_the_last_digits_differ(tmp_path: Path, file: Path) -> None:
    """Another device or kernel rounds otherwise; hours of encoding are not thrown away for that."""
    with pytest.raises(KeyboardInterrupt):
        build_index([file], tmp_path / "index", job(CheapEncoder(stop_after=15)))
    (identity,) = tmp_path.rglob(IDENTITY)
    content = json.loads(identity.read_text())
    turned = [value + 1e-5 * (-1) ** at for at, value in enumerate(content["golden"])]
    identity.write_text(json.dumps({**content, "golden": turned}))
    encoder = CheapEncoder()
    build_index([file], tmp_path / "index", job(encoder))
    assert 0 < encoder.encoded < 23


def test_stopped_before_it_took_its_name(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrieval_index.build.move_into_place", stopped)
        with pytest.raises(KeyboardInterrupt):
            build_index([file], tmp_path / "index", job())
    encoder = CheapEncoder()
    build_index([file], tmp_path / "index", job(encoder))
    assert encoder.encoded == 0 and len(read_manifest(tmp_path / "index").shards) == 3


def test_a_rebuild_replaces_the_index_only_when_complete(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "index"
    build_index([file], out, job())
    before = contents(out)
    half = replace(SMALL, dtype="float16")
    with pytest.raises(KeyboardInterrupt):
        build_index([file], out, job(CheapEncoder(stop_after=1), half))
    assert contents(out) == before
    build_index([file], out, job(settings=half))
    assert read_manifest(out).dtype == "float16"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "index"]


def test_an_index_below_its_recall_is_not_made_and_its_embeddings_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(random_captions(400)), encoding="utf-8")
    queries = picture_like(60)
    settings = IndexSettings(kind="ivf_pq", memory_budget="600MiB", recall_k=5, target_recall=1.0)

    def lossy(refine: tuple[int, ...]) -> None:
        from retrieval_index import recall

        patch.setitem(recall.REFINE, "ivf_pq", refine)

    with pytest.MonkeyPatch.context() as patch:
        lossy((0,))
        with pytest.raises(BelowTarget, match="misses its recall: 0.*index.kind=ivf_sq8, or index.accept_recall=0."):
            build_index([file], tmp_path / "index", job(settings=settings, queries=lambda: queries))
        assert not (tmp_path / "index").exists()
        encoder = CheapEncoder()
        accepted = replace(settings, accept_recall=0.1)
        manifest = build_index([file], tmp_path / "index", job(encoder, accepted, queries=lambda: queries))
    assert encoder.encoded == 0  # the embeddings were there
    recall = manifest.index.recall
    assert 0.1 < recall.value < 1 and (recall.target, recall.queries, recall.of) == (1.0, 30, "pictures")


def test_without_pictures_an_index_for_pictures_is_exact(tmp_path: Path, file: Path) -> None:
    with pytest.raises(RetrievalError, match="must be measured with pictures.*index.queries=FOLDER"):
        build_index([file], tmp_path / "index", job(settings=replace(SMALL, kind="ivf_flat")))
    unmeasured = replace(SMALL, kind="ivf_flat", accept_recall=0.0, recall_k=3)
    assert build_index([file], tmp_path / "index", job(settings=unmeasured)).index.recall.of == "captions"
    text = job(CheapEncoder(encodes_images=False), replace(SMALL, kind="ivf_flat", recall_k=3))
    recall = build_index([file], tmp_path / "text", text).index.recall
    assert recall.of == "captions" and recall.value >= 0.95


def test_the_plan_is_told_before_anything_is_encoded(tmp_path: Path, file: Path) -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        build_index([file], tmp_path / "index", job(CheapEncoder(stop_after=0), announce=told.append))
    assert len(told) == 1 and told[0].startswith("Index: exact flat over 23 x 16; 1.4 KiB (peak ")
    with pytest.raises(RetrievalError, match="fits into the memory budget. Given: 1.0 MiB"):
        build_index([file], tmp_path / "other", job(settings=replace(SMALL, memory_budget="1MiB")))


def test_progress_by_stage(tmp_path: Path, file: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    settings = IndexSettings(shard_rows=20, batch_size=20)
    build_index([file], tmp_path / "index", job(settings=settings, progress=lambda *told: seen.append(told)))
    expected = [("read", 1, 1)] + [("encode", n, 23) for n in (20, 20, 23, 23)]
    expected += [("index", n, 23) for n in (0, 20, 23)]
    assert seen == expected


@pytest.mark.parametrize(
    ("content", "neighbours", "message"),
    [("\n \n", 1, "holds no captions"), ("a cat\na dog", 3, "Given: k=3. Allowed: 1 to 2")],
)
def test_a_corpus_that_is_refused_leaves_nothing(tmp_path: Path, content: str, neighbours: int, message: str) -> None:
    (tmp_path / "c.txt").write_text(content)
    with pytest.raises(RetrievalError, match=message):
        build_index([tmp_path / "c.txt"], tmp_path / "index", job(neighbours=neighbours))
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


def test_a_directory_of_something_else_is_not_replaced(tmp_path: Path, file: Path) -> None:
    with pytest.raises(RetrievalError, match="something else than an index"):
        build_index([file], tmp_path, job())


def test_vectors_that_are_not_finite(tmp_path: Path, file: Path) -> None:
    class Broken(CheapEncoder):
        def encode_texts(self, texts: Any, **options: Any) -> np.ndarray:
            vectors = super().encode_texts(texts, **options)
            vectors[2:4] *= np.nan
            return vectors

    with pytest.raises(RetrievalError, match="not finite. Given: 2 captions, the first one "):
        build_index([file], tmp_path / "index", job(Broken()))
    assert not (tmp_path / "index").exists()


def test_killed_while_it_removes_the_old_index(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, half = tmp_path / "index", replace(SMALL, dtype="float16")
    build_index([file], out, job())
    old = contents(out)

    def killed(path: Path, ours: Any) -> None:
        assert path.name == "index.building"
        for shard in (path / "shards").iterdir():
            shard.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrieval_index.ownership.remove_ours", killed)
        with pytest.raises(KeyboardInterrupt):
            build_index([file], out, job(settings=half))
    assert read_manifest(out).dtype == "float16"
    build_index([file], out, job())
    assert contents(out) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "index"]


def test_an_index_behind_a_link_is_rebuilt_where_it_is(tmp_path: Path, file: Path) -> None:
    (tmp_path / "disk").mkdir()
    build_index([file], tmp_path / "disk" / "index", job())
    (tmp_path / "index").symlink_to(tmp_path / "disk" / "index")
    build_index([file], tmp_path / "index", job(settings=replace(SMALL, dtype="float16")))
    assert (tmp_path / "index").is_symlink() and read_manifest(tmp_path / "disk" / "index").dtype == "float16"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["index"]
