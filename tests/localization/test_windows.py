"""Windows of layers, refusals by condition, and what the band does more than the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tga.errors import UserError
from tga.localization.rows import Rows
from tga.localization.windows import Answer, AskedBatch, Tally, inside_outside, layer_windows, refusals, window_name


def test_windows_cover_all_layers() -> None:
    assert layer_windows(6, 2) == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert layer_windows(6, 6) == [(1, 6)]
    assert layer_windows(32, 5, 4) == [(1, 5), (5, 9), (9, 13), (13, 17), (17, 21), (21, 25), (25, 29), (28, 32)]
    assert window_name((3, 4)) == "window_3_4"


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (0, 1), (2, 0)])
def test_windows_that_do_not_fit_are_refused(size: int, stride: int) -> None:
    with pytest.raises(UserError, match=r"Allowed: 1 to 6 layers.*localization.window=2"):
        layer_windows(6, size, stride)


def test_refusals_by_condition() -> None:
    """Answers here say which layers were touched; those of layer 2 do not refuse."""
    batches = [AskedBatch(("a", "b"), 2, torch.zeros(2, 1).bool()), AskedBatch(("c",), 1, torch.ones(1, 1).bool())]
    touched: list[tuple[int, ...]] = []
    left: list[int] = []
    answers: list[Answer] = []

    @contextmanager
    def intervene(layers: tuple[int, ...], places: Tensor) -> Iterator[Rows]:
        touched.append(layers)
        yield Rows(places)
        touched.pop()

    def generate(count: int, rows: Rows) -> list[str]:
        rows.keep(torch.tensor([0]))
        left.append(count)
        return [f"layers {touched[-1]}"] * count

    tallies = refusals(
        batches,
        {"plain": (), "window_1_2": (1, 2), "band": (3,)},
        intervene=intervene,
        generate=generate,
        judge=lambda answer: "2" not in answer,
        on_answer=answers.append,
    )
    assert tallies == {"plain": Tally(3, 3), "window_1_2": Tally(0, 3), "band": Tally(3, 3)}
    assert left == [2, 2, 2, 1, 1, 1] and touched == []
    assert answers[0] == Answer("plain", "a", "layers ()", True)
    assert [(a.condition, a.id) for a in answers[-3:]] == [("plain", "c"), ("window_1_2", "c"), ("band", "c")]


def test_a_tally_is_a_share() -> None:
    assert Tally(3, 4).share == 0.75 and Tally().share == 0.0


def test_inside_and_outside_of_the_band() -> None:
    plain = Tally(10, 10)
    windows = {(1, 2): Tally(9, 10), (2, 3): Tally(4, 10), (3, 4): Tally(2, 10), (5, 6): Tally(10, 10)}
    found = inside_outside(plain, windows, band=(3, 3))
    assert found.inside == pytest.approx(0.7) and found.outside == pytest.approx(0.05)
    assert found.inside_lowers_more is True
    assert inside_outside(plain, windows, band=(6, 6)).inside_lowers_more is False
    everything = inside_outside(plain, windows, band=(1, 6))
    assert everything.outside is None and everything.inside_lowers_more is None


def test_rows_refuse_another_batch() -> None:
    rows = Rows(torch.tensor([[1], [2], [3]]))
    rows.keep(torch.tensor([0, 2]))
    assert rows.of(torch.zeros(2, 4, 5)).tolist() == [[1], [3]]
    with pytest.raises(ValueError, match="3 rows where 2"):
        rows.of(torch.zeros(3, 4, 5))
