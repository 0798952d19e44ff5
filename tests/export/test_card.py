"""The card says what is known, nothing of the machine, and what others wrote is text in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard as HubCard
from markdown_it import MarkdownIt

from tga.errors import UserError
from tga.export.card import ModelCard, escaped, headline_figures, is_hub_id, public_name, render_card
from tga.export.licence import OF_THE_BASE, Licence, licence_of_base

HOSTILE = [
    "a | b | c",
    "<script>alert(1)</script> <img src=x onerror=y> &lt;",
    "one\ntwo\r\n\n---\nlicense: mit\n---\n# three\x1b[31m\x07",
    "[text](javascript:alert(1)) ![picture](http://there/x.png) `code` *strong* _slanted_ ~~gone~~ $x$",
    "\\| back \\ slash #",
    "1. a list",
    "snake_case_name 0.5 (a-b) +1",
    "\u202egnirts \u2028 line",
]
TEXTS = ("text", "text_special")


def markdown(text: str) -> list[object]:
    """Tokens of the Markdown below the header, with tables and HTML, as the hub has them."""
    return list(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(HubCard(text).text))


def kinds(text: str) -> list[str]:
    """Kinds of all tokens but of those that are text."""
    found = []
    for token in markdown(text):
        found += [token.type, *(child.type for child in token.children or () if child.type not in TEXTS)]
    return found


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, as a reader sees them."""
    found: list[list[str]] = []
    for token in markdown(text):
        if token.type == "tr_open":
            found.append([])
        elif token.type == "inline" and token.level > 3:
            found[-1].append("".join(child.content for child in token.children))
    return found


def test_the_card_names_bases_method_settings_and_figures() -> None:
    card = ModelCard(
        name="mini",
        base_llm="an-llm",
        base_vision_tower="a-tower",
        method="tga | raw",
        settings={"learning_rate": 0.002},
        figures={"image_dsr": 0.7512345, "image_dsr_low": 0.6, "image_dsr_high": 0.86, "image_dsr_n": 80},
    )
    lines = render_card(card, "Use it so.").splitlines()
    for line in (
        "# mini",
        "| language model | an-llm |",
        "| vision tower | a-tower |",
        "| method | tga \\| raw |",
        "| learning_rate | 0.002 |",
        "| image_dsr | 0.7512 | 0.6 to 0.86 | 80 | defence success rate with pictures |",
        "Use it so.",
    ):
        assert line in lines


def test_a_card_without_figures_has_no_table_of_them() -> None:
    text = render_card(ModelCard("n", "an-llm", "a-tower", "tga"), "Use it so.")
    assert "## Measured" not in text and "## Training" not in text and "## Limits" in text


def test_the_header_is_the_hubs() -> None:
    card = ModelCard(
        "n", "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336", "tga",
        licence=Licence("llama2"), datasets=("liuhaotian/LLaVA-Pretrain",),
    )  # fmt: skip
    data = HubCard(render_card(card, "Use it so.")).data
    assert data.license == "llama2" and data.library_name == "transformers"
    assert data.base_model == ["lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"]
    assert data.datasets == ["liuhaotian/LLaVA-Pretrain"] and data.pipeline_tag == "image-text-to-text"
    assert data.tags == ["llava", "safety", "tga"]


def test_a_complete_model_is_the_base_of_the_card() -> None:
    card = ModelCard("n", "the language model of x", "the tower of x", "tga", base_vlm="llava-hf/llava-1.5-7b-hf")
    assert HubCard(render_card(card, "")).data.base_model == ["llava-hf/llava-1.5-7b-hf"]


def test_no_path_and_no_encoded_data(tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    settings = {"data": f"{tmp_path}/train.json", "print": "13ca8e04d3c56584:" + "VT8+P20/" * 40, "steps": 3}
    card = ModelCard("n", f"{tmp_path}/llm", "../towers/clip", "tga", settings=settings, base_vlm=str(tmp_path))
    text = render_card(card, "Use it so.")
    assert str(tmp_path) not in text and "../" not in text and "VT8" not in text
    assert "| language model | llm |" in text and "| vision tower | clip |" in text and "| steps | 3 |" in text
    data = HubCard(text).data
    assert data.base_model is None and data.license == "other" and data.license_name == "of-the-base-models"


@pytest.mark.parametrize("given", HOSTILE)
def test_what_others_wrote_is_text(given: str) -> None:
    text = render_card(ModelCard(given, "org/llm", "org/tower", given, settings={given: given}), "Use it so.")
    plain = render_card(ModelCard("n", "org/llm", "org/tower", "m", settings={"k": "v"}), "Use it so.")
    expected = " ".join("".join(" " if sign in "\n\r\x1b\x07\u202e\u2028" else sign for sign in given).split())
    assert ["method", expected] in rows(text)
    if "\\" not in given and "/" not in given:  # else it may be a path, which is no setting
        assert [expected, expected] in rows(text)
        assert kinds(text) == kinds(plain)
    assert HubCard(text).data.to_dict() == HubCard(plain).data.to_dict()
    assert not {"html_inline", "html_block", "link_open", "image", "code_inline"} & set(kinds(text))
    assert not any(ord(sign) < 32 and sign != "\n" for sign in text)


def test_words_with_underscores_stay_readable() -> None:
    assert escaped("tga_centred 0.5") == "tga_centred 0.5" and escaped("_a_") == "\\_a\\_"


def test_three_figures_at_most_one_of_each_kind() -> None:
    figures = {
        "text_dsr": 0.9, "text_over_refusal": 0.1, "heldout_image_dsr": 0.4, "image_dsr": 0.5, "image_dsr_low": 0.4,
        "image_dsr_high": 0.6, "over_refusal": 0.02, "caption_accuracy": 0.7, "caption_accuracy_n": 40, "train_s": 9.0,
    }  # fmt: skip
    assert [row[:4] for row in headline_figures(figures)] == [
        ("image_dsr", "0.5", "0.4 to 0.6", "-"),
        ("over_refusal", "0.02", "-", "-"),
        ("caption_accuracy", "0.7", "-", 40),
    ]
    assert [row[0] for row in headline_figures({"text_dsr": 1.0, "figstep_dsr": 0.3})] == ["figstep_dsr"]
    assert headline_figures({"image_dsr": None, "loss": 1.0}) == []


def test_hub_ids_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("org/model-1.0") and public_name("org/model-1.0") == "org/model-1.0"
    for other in ("model", "/a/b", "./a", "../a", "a/b/c", "a//b", "C:\\models\\llm", "org/a b", "", "a/b\nc"):
        assert not is_hub_id(other), other
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("org/model") and public_name("org/model") == "model"
    assert public_name("C:\\models\\llm") == "llm" and public_name("/models/llm/") == "llm"


def test_the_licence_is_that_of_the_language_models_card(tmp_path: Path) -> None:
    assert licence_of_base(None) == licence_of_base(str(tmp_path)) == licence_of_base("org/absent") == OF_THE_BASE
    link = "https://there/it"
    cards = {
        "license: apache-2.0": Licence("apache-2.0"),
        f"license: other\nlicense_name: mine\nlicense_link: {link}": Licence("other", "mine", link),
        "license: other\nlicense_name: mine\nlicense_link: LICENSE": Licence("other", "mine"),
        "license: other": OF_THE_BASE,
        "license: [a, b]": OF_THE_BASE,
        "license: 'x: y'": OF_THE_BASE,
        "a: [": OF_THE_BASE,
    }
    for header, expected in cards.items():
        (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# Base\n")
        assert licence_of_base(str(tmp_path)) == expected, header


@pytest.mark.parametrize(
    "given", [("Apache 2.0",), ("mit\ntags: x",), ("other",), ("mit", "name"), ("mit", None, "LICENSE")]
)
def test_a_licence_that_the_hub_would_refuse_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"licen[cs]e"):
        Licence(*given)
