"""The centre of the cosines against the mean of captions run one by one."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from tests.tiny import SENTENCES, tiny_llava
from tga.alignment.regap import ReGap
from tga.alignment.tga import TGA
from tga.data.collate import Collator
from tga.errors import UserError
from tga.training.centre import caption_centre, with_centre
from tga.vlm.families import family_of


def centre(captions: list[str], count: int, batch_size: int) -> torch.Tensor:
    model, processor = tiny_llava()
    collator = Collator(processor, "plain", image_tokens=4, retrieved="none", max_length=200)
    return caption_centre(
        model, family_of(model), collator, captions, (0, 2), count=count, seed=0,
        device=torch.device("cpu"), console=Console(quiet=True), batch_size=batch_size,
    )  # fmt: skip


def test_it_is_the_mean_over_captions() -> None:
    model, processor = tiny_llava()
    rows = []
    for text in SENTENCES:
        ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append(torch.stack([states[layer][0, 1:].mean(0) for layer in (0, 2)]))
    torch.testing.assert_close(centre(SENTENCES, 99, batch_size=2), torch.stack(rows).mean(0), rtol=1e-5, atol=1e-6)


def test_a_sample_of_captions_is_seeded_and_no_captions_are_refused() -> None:
    assert torch.equal(centre(SENTENCES, 3, batch_size=2), centre(SENTENCES, 3, batch_size=2))
    assert not torch.allclose(centre(SENTENCES, 3, batch_size=8), centre(SENTENCES, 99, batch_size=8))
    with pytest.raises(UserError, match="alignment.centred=false"):
        centre([], 3, batch_size=2)


def test_an_objective_gets_the_rows_of_its_layers() -> None:
    rows = torch.arange(3.0)[:, None].expand(3, 2)
    objective, other = with_centre([TGA((1, 9)), ReGap()], rows, (1, 4, 9))
    assert isinstance(objective, TGA) and objective.centre is not None
    assert objective.centre.tolist() == [[0.0, 0.0], [2.0, 2.0]]
    assert isinstance(other, ReGap)
    with pytest.raises(UserError, match="nothing to centre. Given: ReGap.*alignment.centred=false"):
        with_centre([ReGap()], rows, (1, 4, 9))
