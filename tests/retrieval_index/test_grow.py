"""Growing an index: rows keep their numbers, repeated captions are counted, and the plan is kept or made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_index.build import build_index
from retrieval_index.errors import RetrievalError
from retrieval_index.grow import append_captions, plan_again
from retrieval_index.index import CaptionIndex
from retrieval_index.manifest import read_manifest
from retrieval_index.settings import IndexSettings
from retrieval_index.stages import Job
from tests.retrieval_index.cheap_encoder import SOURCE, CheapEncoder
from tests.retrieval_index.test_build import contents, named, picture_like
from tests.tiny_clip import random_captions

CAPTIONS = random_captions(600)
QUERIES = picture_like(80)
SETTINGS = IndexSettings(shard_rows=100, kind="ivf_flat", recall_k=5)


def job(settings: IndexSettings = SETTINGS, encoder: CheapEncoder | None = None, **options: Any) -> Job:
    return Job(encoder or CheapEncoder(), SOURCE, settings, lambda: QUERIES, **options)


def write(path: Path, captions: list[str]) -> list[Path]:
    path.write_text("\n".join(captions), encoding="utf-8")
    return [path]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(write(tmp_path / "a.txt", CAPTIONS[:450]), tmp_path / "index", job())
    return tmp_path / "index"


def test_rows_keep_their_numbers_and_the_recall_is_measured_anew(index: Path, tmp_path: Path) -> None:
    old = CaptionIndex.open(index)
    encoder = CheapEncoder()
    repeated = [CAPTIONS[7].upper(), CAPTIONS[7]]
    manifest = append_captions(write(tmp_path / "b.txt", CAPTIONS[400:] + repeated), index, job(encoder=encoder))
    assert encoder.encoded == 150
    assert [shard.rows for shard in manifest.shards] == [100, 100, 100, 100, 50, 100, 50]
    assert (manifest.sources[1].rows, manifest.sources[1].duplicates) == (150, 52)
    assert manifest.index.generation == 1 and manifest.index.plan["rows"] == 600
    assert manifest.index.recall.value >= 0.95 and manifest.index.recall.queries == 40
    assert named(manifest) == {name: sha for name, sha in contents(index).items() if name != "manifest.json"}
    new = CaptionIndex.open(index)
    assert new.captions(range(600)) == CAPTIONS
    assert new.store.counts([7, 8, 420, 599]) == [3, 1, 2, 1]
    assert len(old) == 450 and old.captions([449]) == CAPTIONS[449:450]
    exact = new.search_exact(QUERIES.vectors, 5)[1]
    found = new.search(QUERIES.vectors, 5)[1]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), exact.tolist(), strict=True)]) > 0.94


def test_the_same_files_are_not_added_twice(index: Path, tmp_path: Path) -> None:
    files = write(tmp_path / "b.txt", CAPTIONS[400:])
    once = append_captions(files, index, job())
    before = contents(index)
    encoder = CheapEncoder()
    assert append_captions(files, index, job(encoder=encoder)) == once
    assert append_captions([tmp_path / "a.txt"], index, job(encoder=encoder)) == once
    assert encoder.encoded == 0 and contents(index) == before


def test_captions_that_are_all_known_add_counts_only(index: Path, tmp_path: Path) -> None:
    before = read_manifest(index)
    manifest = append_captions(write(tmp_path / "b.txt", CAPTIONS[:3]), index, job())
    assert (manifest.shards, manifest.index) == (before.shards, before.index)
    assert (manifest.sources[1].rows, manifest.sources[1].duplicates) == (0, 3)
    assert CaptionIndex.open(index).store.counts([2, 3]) == [2, 1]


def test_growth_after_growth(index: Path, tmp_path: Path) -> None:
    append_captions(write(tmp_path / "b.txt", CAPTIONS[450:500]), index, job())
    manifest = append_captions(write(tmp_path / "c.txt", CAPTIONS[490:]), index, job())
    assert manifest.index.file == "index/00002.faiss" and len(manifest.sources) == 3
    assert CaptionIndex.open(index).captions(range(600)) == CAPTIONS
    assert named(manifest) == {name: sha for name, sha in contents(index).items() if name != "manifest.json"}


def test_a_plan_that_no_longer_fits_is_made_anew(tmp_path: Path) -> None:
    from retrieval_index import planner

    settings = replace(SETTINGS, kind="auto", memory_budget="257MiB")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(planner.EXACT_NUMBERS, "cpu", 0)
        patch.setattr(planner, "HNSW_BUILD_S", 0.0)
        patch.setattr(planner, "RESERVED", 257 * 2**20 - planner.BUFFERS - 400_000)
        build_index(write(tmp_path / "a.txt", CAPTIONS[:450]), tmp_path / "index", job(settings))
        assert read_manifest(tmp_path / "index").index.plan["kind"] == "ivf_flat"
        told: list[str] = []
        grown = job(settings, announce=told.append)
        manifest = append_captions(write(tmp_path / "b.txt", random_captions(4000, seed=1)), tmp_path / "index", grown)
    assert manifest.index.plan["kind"] in ("ivf_sq8", "ivf_pq")
    assert len(told) == 1 and "IVF-Flat" not in told[0]


def test_a_recall_that_growth_lost_is_mended_by_a_new_plan(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval_index import generation

    measured = generation._measured

    def poor_when_grown(path: Path, vectors: Any, plan: Any, task: Job) -> Any:
        tuned = measured(path, vectors, plan, task)
        grown = plan.lists == read_manifest(index).index.plan["lists"]
        return replace(tuned, recall=replace(tuned.recall, value=0.5)) if grown else tuned

    monkeypatch.setattr(generation, "_measured", poor_when_grown)
    told: list[str] = []
    append_captions(write(tmp_path / "b.txt", CAPTIONS[450:]), index, job(announce=told.append))
    assert told[1].startswith("Planned anew. The index misses its recall: 0.5000")
    assert len(CaptionIndex.open(index)) == 600


def test_a_failed_growth_leaves_the_index_as_it_was(index: Path, tmp_path: Path) -> None:
    before = contents(index)
    files = write(tmp_path / "b.txt", CAPTIONS[400:])
    with pytest.raises(KeyboardInterrupt):
        append_captions(files, index, job(encoder=CheapEncoder(stop_after=120)))
    with pytest.raises(RetrievalError, match="fits into the memory budget"):
        append_captions(files, index, job(replace(SETTINGS, memory_budget="1MiB")))
    with pytest.raises(RetrievalError, match="holds no captions"):
        append_captions(write(tmp_path / "empty.txt", [" "]), index, job())
    with pytest.raises(RetrievalError, match="made with another encoder"):
        append_captions(files, index, job(encoder=CheapEncoder(seed=1)))
    assert contents(index) == before
    encoder = CheapEncoder()
    append_captions(files, index, job(encoder=encoder))
    assert len(CaptionIndex.open(index)) == 600


def test_planned_again_without_new_captions(index: Path) -> None:
    encoder = CheapEncoder()
    manifest = plan_again(index, job(replace(SETTINGS, kind="flat"), encoder))
    assert encoder.encoded == 0
    assert (manifest.index.plan["kind"], manifest.index.file, manifest.rows) == ("flat", "index/00001.faiss", 450)
    index_ = CaptionIndex.open(index)
    np.testing.assert_array_equal(index_.search(QUERIES.vectors, 5)[1], index_.search_exact(QUERIES.vectors, 5)[1])


def test_a_rebuild_meanwhile_is_not_overwritten_by_a_stale_growth(index: Path, tmp_path: Path) -> None:
    from retrieval_index import grow

    files = write(tmp_path / "b.txt", CAPTIONS[400:])
    with pytest.MonkeyPatch.context() as patch:
        commit, calls = grow._commit, []

        def second_fails(work: Path, out: Path) -> None:
            calls.append(out)
            if len(calls) == 2:
                raise KeyboardInterrupt
            commit(work, out)

        patch.setattr(grow, "_commit", second_fails)
        with pytest.raises(KeyboardInterrupt):
            append_captions(files, index, job())
    build_index(write(tmp_path / "a.txt", CAPTIONS[:200]), index, job())
    manifest = append_captions(files, index, job())
    assert manifest.rows == 400 and CaptionIndex.open(index).captions(range(400)) == CAPTIONS[:200] + CAPTIONS[400:]


def test_an_index_behind_a_link_grows_where_it_is(index: Path, tmp_path: Path) -> None:
    """Beside the link may be another disk, onto which nothing can be renamed."""
    there = tmp_path / "disk" / "index"
    there.parent.mkdir()
    index.rename(there)
    (tmp_path / "link").symlink_to(there)
    before = {path.name for path in tmp_path.iterdir()}
    append_captions(write(tmp_path / "b.txt", CAPTIONS[450:]), tmp_path / "link", job())
    assert len(CaptionIndex.open(there)) == 600 and (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == before | {"b.txt"}
    plan_again(tmp_path / "link", job(replace(SETTINGS, kind="flat")))
    assert read_manifest(there).index.plan["kind"] == "flat"
