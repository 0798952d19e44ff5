"""Every supported family: request shifts, and corrected answers of a padded batch against single prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.steering.requests import PROMPTS, patched, tiny_setup
from tests.tiny_families import FAMILIES
from tga.evaluation.generate import greedy_tokens
from tga.evaluation.prompts import prompt_batch
from tga.steering.cmrm import RequestShift
from tga.steering.hooks import steered
from tga.steering.states import whole_states

LAYERS = (1, 2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_shifts_and_corrected_answers(family: str, tmp_path: Path):
    setup = tiny_setup(tmp_path, FAMILIES[family])
    pictured, plain = setup.rows(PROMPTS, "blank.png"), setup.rows(PROMPTS, None)
    shift = RequestShift(setup.model, setup.family, LAYERS, setup.blank)(pictured, plain)
    for row in range(len(PROMPTS)):
        with_picture = whole_states(setup.model, setup.family, LAYERS, setup.blank([pictured[row]]))
        expected = with_picture - RequestShift(setup.model, setup.family, LAYERS, setup.blank)._plain([plain[row]])
        torch.testing.assert_close(shift[:, row], expected[:, 0], rtol=1e-3, atol=1e-3)
    by_layer = dict(zip(LAYERS, shift, strict=True))
    pictures = [tmp_path / f"{number}.png" for number in range(len(PROMPTS))]
    rows = [setup.rows([prompt], f"{number}.png")[0] for number, prompt in enumerate(PROMPTS)]

    def answers(chosen: slice) -> list[list[int]]:
        batch = prompt_batch(
            setup.model, setup.processor, setup.family, rows[chosen], pictures[chosen], padding_side="left"
        )
        return greedy_tokens(setup.model, setup.family, batch, end_ids=[1], max_new_tokens=6)

    before = answers(slice(0, 4))
    with steered(setup.model, setup.family, by_layer, alpha=1.0):
        together = answers(slice(0, 4))
    for row in range(len(PROMPTS)):
        with patched(setup, {layer: values[row] for layer, values in by_layer.items()}, 1.0):
            assert answers(slice(row, row + 1)) == [together[row]]
    assert together != before and answers(slice(0, 4)) == before
