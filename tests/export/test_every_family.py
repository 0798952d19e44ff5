"""Every family's export: plain transformers, where `tga` cannot be imported, answers as the model here does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.tiny_families import FAMILIES, TEMPLATE, made, write_pictures
from tga.data.collate import Collator
from tga.data.sample import Sample, Turn
from tga.evaluation.generate import answer_questions
from tga.evaluation.questions import Question
from tga.export.card import ModelCard
from tga.export.hf import export_hf
from tga.vlm.families import component, family_of
from tga.vlm.image_tokens import check_image_tokens

CARD = ModelCard(name="tiny", base_llm="an-llm", base_vision_tower="a-tower", method="tga")
QUESTION = "What is in the picture?"

# In a process of its own, isolated: no PYTHONPATH, no user site, no working directory on the path, and no tga.
READER = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tga", "retrieval_index"):
            raise ImportError(name + " is not to be had here")

sys.meta_path.insert(0, Refuse())
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

picture, question, *directories = sys.argv[1:]
torch.set_num_threads(1)
for directory in directories:
    model = AutoModelForImageTextToText.from_pretrained(directory, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(directory)
    content = [{"type": "image", "image": Image.open(picture).convert("RGB")}, {"type": "text", "text": question}]
    if processor.chat_template is None:  # InstructBLIP's processor keeps none: it puts picture and text together itself
        inputs = processor(images=content[0]["image"], text=question, return_tensors="pt")
    else:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    given = inputs["input_ids"][0].tolist()
    answer = processor.decode(tokens[len(given):], skip_special_tokens=True).strip()
    print(json.dumps({"given": given, "answer": answer}))
assert not any(name.split(".")[0] == "tga" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """By family: model and processor here, and what plain transformers made of the exported directory."""
    root = tmp_path_factory.mktemp("families")
    picture = write_pictures(root)["wide"]
    here = {}
    for name in FAMILIES:
        model, processor = made(name)
        with torch.no_grad():
            for parameter in component(model, family_of(model).projector).parameters():
                parameter.add_(0.1)  # a projector that no seed gives
        export_hf(model, processor, root / name, CARD, trained_with=TEMPLATE[name], verify=False)
        here[name] = (model, processor)
    command = [sys.executable, "-I", "-c", READER, str(picture), QUESTION, *(str(root / name) for name in FAMILIES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (root / "elsewhere").mkdir()
    result = subprocess.run(
        command, cwd=root / "elsewhere", env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return {name: (*here[name], {**line, "picture": picture}) for name, line in zip(FAMILIES, lines, strict=True)}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_chat_prompt_is_the_one_it_was_trained_on(name: str, read: dict[str, Any]) -> None:
    model, processor, found = read[name]
    turns = (Turn("user", QUESTION), Turn("assistant", "A dog."))
    sample = Sample("a", (found["picture"],), turns, None)
    tokens = check_image_tokens(model, family_of(model), processor)
    batch = Collator(processor, TEMPLATE[name], image_tokens=tokens, retrieved="none", max_length=400)([sample])
    first_label = int((batch.labels[0] != -100).nonzero()[0])
    prompt = processor.tokenizer.decode(batch.input_ids[0, :first_label])
    assert processor.tokenizer.decode(found["given"]).rstrip() == prompt.rstrip()


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_transformers_gives_the_same_answer(name: str, read: dict[str, Any]) -> None:
    model, processor, found = read[name]
    question = Question("a", "", QUESTION, "chat", image=found["picture"])
    [answer] = answer_questions(
        model, processor, family_of(model), [question], chat_template=TEMPLATE[name], max_new_tokens=6,
        show_progress=False,
    )  # fmt: skip
    assert answer == found["answer"] and answer
