"""States of the last position: equal to transformers' own, and beginnings that run once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.steering.requests import PROMPTS, Setup, tiny_setup
from tga.steering.states import PrefixStates, whole_states
from tga.vlm.families import component

LAYERS = (1, 2, 3)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("pictures"))


@contextmanager
def tokens_run(setup: Setup) -> Iterator[list[int]]:
    """How many tokens, rows times positions, each forward pass sends through the first decoder layer."""
    counted: list[int] = []
    layer = component(setup.model, setup.family.decoder_layers)[0]  # type: ignore[index]
    handle = layer.register_forward_pre_hook(lambda _module, args: counted.append(args[0].shape[0] * args[0].shape[1]))
    try:
        yield counted
    finally:
        handle.remove()


def expected_states(setup: Setup, rows: list[list[int]], picture: str | None) -> Tensor:
    """[layers, rows, width], row by row without padding, from transformers' output; the last one before its norm."""
    found = []
    for row in rows:
        before_norm: list[Tensor] = []
        norm = component(setup.model, setup.family.final_norm)
        handle = norm.register_forward_pre_hook(lambda _module, args, kept=before_norm: kept.append(args[0]))
        with torch.no_grad():
            output = setup.model(**setup.inputs([row], [picture] if picture else []), output_hidden_states=True)
        handle.remove()
        states = [*output.hidden_states[1:-1], before_norm[0]]
        found.append(torch.stack([state[0, -1] for state in states]))
    return torch.stack(found, dim=1)


def test_whole_prompts_in_a_padded_batch(setup: Setup):
    rows = setup.rows(PROMPTS, "blank.png")
    states = whole_states(setup.model, setup.family, LAYERS, setup.blank(rows))
    torch.testing.assert_close(states, expected_states(setup, rows, "blank.png"), rtol=1e-4, atol=1e-4)


def test_only_the_ends_of_pictured_prompts_run_and_the_beginning_once(setup: Setup):
    states = PrefixStates(setup.model, setup.family, LAYERS, setup.blank)
    rows = setup.rows(PROMPTS, "blank.png")
    shared = 1 + max(at for at, token in enumerate(rows[0]) if token == 4)  # <image> is token 4
    shared += 1  # the line end after the picture
    assert [row[:shared] for row in rows] == [rows[0][:shared]] * 4
    with tokens_run(setup) as counted:
        found = states(rows)
        again = states(rows[2:])
    assert counted == [shared, 4 * (max(map(len, rows)) - shared), 2 * (max(map(len, rows[2:])) - shared)]
    expected = expected_states(setup, rows, "blank.png")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, expected[:, 2:], rtol=1e-4, atol=1e-4)


def test_a_single_first_request_leaves_a_beginning_for_the_others(setup: Setup):
    states = PrefixStates(setup.model, setup.family, LAYERS, setup.blank)
    rows = setup.rows(PROMPTS, "blank.png")
    with tokens_run(setup) as counted:
        found = torch.cat([states([row]) for row in rows], dim=1)
    assert counted[:2] == [len(rows[0]) - 1, 1]  # all but the last token is kept
    assert len(counted) == 5 and max(counted[2:]) < len(rows[3]) - 6
    torch.testing.assert_close(found, expected_states(setup, rows, "blank.png"), rtol=1e-4, atol=1e-4)


def test_prompts_in_words_share_their_beginning_too(setup: Setup):
    states = PrefixStates(setup.model, setup.family, LAYERS)
    rows = setup.rows(PROMPTS, None)
    with tokens_run(setup) as counted:
        found = states(rows)
        states(rows)
    assert len(counted) == 3 and counted[0] >= 1 and counted[1] == counted[2]
    torch.testing.assert_close(found, expected_states(setup, rows, None), rtol=1e-4, atol=1e-4)
    lonely = [[5, 6, 7], [8, 9]]  # nothing in common
    torch.testing.assert_close(states(lonely), expected_states(setup, lonely, None), rtol=1e-4, atol=1e-4)


def test_prompts_whose_pictures_stand_elsewhere_run_whole(setup: Setup):
    rows = setup.rows(PROMPTS[:2], "blank.png")
    rows[1] = [*rows[1][:1], 9, *rows[1][1:]]
    states = PrefixStates(setup.model, setup.family, LAYERS, setup.blank)
    with tokens_run(setup) as counted:
        found = states(rows)
    assert counted == [2 * max(map(len, rows))]
    torch.testing.assert_close(found, expected_states(setup, rows, "blank.png"), rtol=1e-4, atol=1e-4)


def test_layers_that_forget_keys_make_prompts_run_whole(tmp_path: Path):
    """A sliding window shorter than the beginning: what it has dropped cannot be gone on from."""
    setup = tiny_setup(tmp_path)
    text = setup.model.config.get_text_config()
    text.sliding_window, text.layer_types = 4, ["sliding_attention"] * 3
    states = PrefixStates(setup.model, setup.family, LAYERS, setup.blank)
    rows = setup.rows(PROMPTS[:2], "blank.png")
    with tokens_run(setup) as counted:
        states(rows)
        states(rows)
    assert counted[1] == 2 * max(map(len, rows)) == counted[-1]


def test_deeper_layers_and_the_head_do_not_run(setup: Setup):
    rows = setup.rows(PROMPTS[:2], "blank.png")
    ran: list[str] = []

    def note(name: str):
        return lambda *_: ran.append(name)

    modules: dict[str, nn.Module] = {"third": component(setup.model, setup.family.decoder_layers)[2]}  # type: ignore[index]
    modules["head"] = component(setup.model, setup.family.lm_head)
    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    states = PrefixStates(setup.model, setup.family, (1, 2), setup.blank)
    found = states(rows)
    for handle in handles:
        handle.remove()
    assert ran == []
    torch.testing.assert_close(found, expected_states(setup, rows, "blank.png")[:2], rtol=1e-4, atol=1e-4)
