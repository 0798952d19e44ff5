"""Which index is chosen, what it is said to take, and when none fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_index.approximate import make_index
from retrieval_index.engines import LocalEngine
from retrieval_index.errors import RetrievalError
from retrieval_index.planner import KINDS, RESERVED, candidates, choose_plan, grown
from tests.retrieval_index.vectors import captions_and_pictures, write_vectors

GIB = 2**30


@pytest.mark.parametrize(
    ("rows", "width", "budget", "options", "kind"),
    [
        (20, 16, GIB, {}, "flat"),
        (100_000, 512, GIB, {}, "flat"),
        (300_000, 512, 8 * GIB, {}, "hnsw"),
        (300_000, 512, 8 * GIB, {"device": "cuda"}, "flat"),
        (300_000, 512, 8 * GIB, {"target_recall": 1.0}, "flat"),
        (2_000_000, 256, 16 * GIB, {}, "ivf_flat"),
        (2_000_000, 256, GIB, {}, "ivf_sq8"),
        (2_000_000, 256, GIB // 2, {}, "ivf_pq"),
        (100_000_000, 768, 512 * GIB, {"device": "cuda"}, "ivf_flat"),
        (100_000_000, 768, 64 * GIB, {}, "ivf_pq"),
        (100_000_000, 768, 64 * GIB, {"device": "cuda"}, "ivf_pq"),
        (2_000_000, 256, 16 * GIB, {"kind": "flat"}, "flat"),
        (256, 16, GIB, {"kind": "ivf_pq"}, "ivf_pq"),
    ],
)  # fmt: skip
def test_the_choice(rows: int, width: int, budget: int, options: dict, kind: str) -> None:
    plan = choose_plan(rows, width, budget, **options)
    assert plan.kind == kind
    assert plan.index_bytes < plan.peak_bytes <= budget
    assert plan == choose_plan(rows, width, budget, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"No index of 2000000 x 256 fits.*Given: 200 MiB. Allowed: IVF-PQ .* needs \d+ MiB.*index.memory_budget="),
        ({"kind": "hnsw"}, "Allowed: HNSW needs .*index.kind=auto"),
        ({"target_recall": 1.0}, "Allowed: exact flat needs 2.2 GiB. To change it: index.memory_budget=2210MiB"),
        ({"kind": "annoy"}, "Given: annoy. Allowed: auto, flat, hnsw"),
    ],
)
def test_what_cannot_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(RetrievalError, match=message):
        choose_plan(2_000_000, 256, 200 * 2**20, **options)


@pytest.mark.parametrize(("rows", "width"), [(255, 16), (5000, 33)])
def test_product_codes_need_rows_to_learn_from_and_an_even_width(rows: int, width: int) -> None:
    with pytest.raises(RetrievalError, match=f"no product codes .*Given: {rows} x {width}. Allowed: 256 rows"):
        choose_plan(rows, width, GIB, kind="ivf_pq")


def test_product_codes_for_a_gpu_are_of_a_size_that_it_knows() -> None:
    sizes = {device: choose_plan(100_000_000, 768, 64 * GIB, device=device).code_bytes for device in ("cpu", "cuda")}
    assert sizes == {"cpu": 384, "cuda": 96}
    # Of width 1152 none is: the largest that fits is made, for a CPU.
    assert choose_plan(100_000_000, 1152, 64 * GIB, device="cuda").code_bytes == 576


def test_another_kind_is_a_remedy_only_where_one_was_asked_for() -> None:
    for kind, said in (("auto", False), ("flat", True)):
        with pytest.raises(RetrievalError, match="exact flat needs 257 MiB") as caught:
            choose_plan(1200, 16, 2**20, kind=kind)
        assert ("index.kind=auto" in str(caught.value)) is said


def test_the_budget_that_an_error_names_is_enough() -> None:
    with pytest.raises(RetrievalError) as caught:
        choose_plan(50_000_000, 768, GIB)
    named = int(str(caught.value.remedy).removeprefix("index.memory_budget=").removesuffix("MiB"))
    assert choose_plan(50_000_000, 768, named * 2**20).kind == "ivf_pq"


def test_large_indexes_are_filled_in_parts_and_small_ones_at_once() -> None:
    large, small = (choose_plan(rows, 64, 64 * GIB, kind="ivf_sq8") for rows in (50_000_000, 90_000))
    assert (large.part_rows, small.part_rows) == (50_000_000 // 32, 90_000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimated_size_is_the_files_size(tmp_path: Path, kind: str) -> None:
    vectors = write_vectors(tmp_path / "v", captions_and_pictures(3000, 1, 32)[0])
    plan = choose_plan(3000, 32, GIB, kind=kind)
    (tmp_path / "index").mkdir()
    make_index(vectors, plan, tmp_path / "index/0.faiss", run=LocalEngine().run_parts, report=lambda done: None)
    size = (tmp_path / "index/0.faiss").stat().st_size
    codebooks = 256 * 32 * 4 if kind == "ivf_pq" else 0
    assert size == pytest.approx(plan.index_bytes + codebooks, rel=0.01)


def test_the_description_says_kind_size_and_time() -> None:
    plan = choose_plan(2_000_000, 256, GIB)
    line = plan.describe(GIB, threads=4)
    assert line.startswith("Index: IVF-SQ8 over 2000000 x 256, 4096 lists; 508 MiB (peak ")
    assert "of 1.0 GiB); built in about " in line and line.endswith("by 4 threads")
    assert plan.build_seconds(1) > 2 * plan.build_seconds(4)


def test_a_plan_grows_while_it_fits() -> None:
    plan = choose_plan(2_000_000, 256, GIB)
    more = grown(plan, 2_500_000, GIB)
    assert more is not None and (more.kind, more.lists, more.rows) == ("ivf_sq8", plan.lists, 2_500_000)
    assert grown(plan, 4_000_000, GIB) is None  # too large
    assert grown(plan, 100_000_000, 100 * GIB) is None  # too few lists
    flat = choose_plan(1000, 64, GIB)
    assert grown(flat, 2000, GIB) == choose_plan(2000, 64, GIB)
    assert grown(flat, 20_000_000, GIB) is None


def test_every_kind_reserves_room_for_the_process() -> None:
    assert all(plan.peak_bytes > RESERVED + plan.index_bytes for plan in candidates(100_000, 128, 8 * GIB))
