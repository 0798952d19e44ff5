"""A tokenizer that is a tokenizer.model alone: read, outlined, exported; and what is said where nothing reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_picture, write_tiny_parts
from tests.tiny_sentencepiece import make_sentencepiece
from tga.export.card import ModelCard
from tga.export.hf import export_hf
from tga.training.base_model import BaseModel
from tga.vlm.assemble import load_vlm
from tga.vlm.outline import outline_llava
from tga.vlm.parts import load_tokenizer

SENTENCE = "USER: Describe the image."


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    llm, vision = write_tiny_parts(tmp_path_factory.mktemp("parts"))
    make_sentencepiece(llm)
    return str(llm), str(vision)


def test_it_is_read_as_a_fast_tokenizer_that_can_pad(parts: tuple[str, str]) -> None:
    tokenizer = load_tokenizer(parts[0])
    assert tokenizer.is_fast and tokenizer.pad_token == "<unk>"
    ids = tokenizer(SENTENCE)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == SENTENCE


def test_outline_model_and_export_have_one_vocabulary(parts: tuple[str, str], tmp_path: Path) -> None:
    outline, its_processor = outline_llava(*parts)
    model, processor = BaseModel(*parts).load(dtype=torch.float32, attn_implementation="eager")
    assert outline.config.to_dict() == model.config.to_dict()
    assert its_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    card = ModelCard("tiny", "an-llm", "a-tower", "tga")
    directory = export_hf(model, processor, tmp_path / "hf", card, trained_with="vicuna_v1", verify=False)
    loaded, its_processor = load_vlm(str(directory), attn_implementation="eager")
    # The exported tokenizer leaves the first token to the chat template.
    asked = {"text": [f"<image>\n{SENTENCE}"], "images": [tiny_picture(1)], "return_tensors": "pt"}
    inputs, again = (one(**asked, add_special_tokens=False) for one in (processor, its_processor))
    assert again["input_ids"].tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**again).logits, model(**inputs).logits)


# Without one of the packages: None in sys.modules is how Python spells that a module cannot be found.
HIDDEN = """
import sys
sys.modules[{module!r}] = None
sys.argv = ["tga-doctor", "model.llm={llm}", "model.vision_tower={vision}", "data.json=train.json",
            "data.image_root=images", "alignment.layers=[1]"]
from tga.cli.doctor import main
main()
"""


def test_the_doctor_names_the_package_that_reads_it(parts: tuple[str, str], tmp_path: Path) -> None:
    code = HIDDEN.format(module="sentencepiece", llm=parts[0], vision=parts[1])
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    shown = " ".join(ended.stdout.split())
    assert ended.returncode == 1, ended.stderr
    assert "The tokenizer is a SentencePiece model" in shown and "pip install sentencepiece" in shown
    assert "tiktoken" not in shown and "Traceback" not in ended.stderr
