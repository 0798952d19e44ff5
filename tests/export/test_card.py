"""The card says what is known, and nothing where nothing is."""

from __future__ import annotations

import yaml

from tga.export.card import ModelCard, render_card


def test_the_card_names_bases_method_settings_and_figures() -> None:
    card = ModelCard(
        name="mini",
        base_llm="an-llm",
        base_vision_tower="a-tower",
        method="tga | raw",
        settings={"learning_rate": 0.002},
        figures={"image_dsr": 0.7512345, "image_dsr_n": 80, "recognition_toxic": None},
    )
    text = render_card(card, "Use it so.")
    header = yaml.safe_load(text.split("---")[1])
    assert header["pipeline_tag"] == "image-text-to-text" and "tga" in header["tags"]
    lines = text.splitlines()
    for line in (
        "# mini",
        "| language model | an-llm |",
        "| vision tower | a-tower |",
        "| method | tga \\| raw |",
        "| learning_rate | 0.002 |",
        "| image_dsr | 0.7512 |",
        "| image_dsr_n | 80 |",
        "| recognition_toxic | not measured |",
        "Use it so.",
    ):
        assert line in lines


def test_a_card_without_figures_has_no_table_of_them() -> None:
    text = render_card(ModelCard("n", "an-llm", "a-tower", "tga"), "Use it so.")
    assert "## Measured" not in text and "## Training" not in text and "## Limits" in text
