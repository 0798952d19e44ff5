"""The example for users without tga gives the answers that tga gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.steering.requests import Setup, random_shifts, tiny_setup
from tga.evaluation.generate import greedy_tokens
from tga.evaluation.prompts import prompt_batch
from tga.steering.hooks import steered
from tga.steering.vectors import Vectors, describe_model, save_vectors

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "apply_cmrm_vectors.py"
QUESTION = "What is it?"
# The tests' chat template for contents in parts, as the processors of published models have it.
PARTS = (
    "{{ bos_token }}USER: {% for part in messages[0]['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %} ASSISTANT:"
)


def run_example(folder: Path) -> str:
    """What the example prints where `tga` cannot be imported."""
    blocked = folder / "blocked" / "tga"
    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "__init__.py").write_text("raise ImportError('the example must not need tga')")
    environment = {**os.environ, "PYTHONPATH": str(blocked.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), "vlm", "vectors.safetensors", "0.png", QUESTION]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def our_answer(setup: Setup, alpha: float) -> str:
    rows = setup.rows([QUESTION], "0.png")
    batch = prompt_batch(
        setup.model, setup.processor, setup.family, rows, [setup.folder / "0.png"], padding_side="left"
    )
    with steered(setup.model, setup.family, random_shifts([1, 2, 3]), alpha=alpha):
        tokens = greedy_tokens(setup.model, setup.family, batch, end_ids=[1], max_new_tokens=64)
    return setup.processor.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    made = tiny_setup(tmp_path_factory.mktemp("example"))
    made.processor.chat_template = PARTS
    made.model.generation_config.eos_token_id = 1
    made.model.save_pretrained(made.folder / "vlm")
    made.processor.save_pretrained(made.folder / "vlm")
    vectors = Vectors(random_shifts([1, 2, 3]), describe_model(made.model, made.family), alpha=0.7)
    save_vectors(made.folder / "vectors.safetensors", vectors)
    return made


def test_the_example_answers_as_tga_does_with_the_chosen_strength(setup: Setup):
    answer = run_example(setup.folder)
    assert answer == our_answer(setup, 0.7)
    assert answer not in ("", our_answer(setup, 0.0), our_answer(setup, 1.0))


def test_the_example_is_short_and_imports_nothing_of_ours():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50 and "import tga" not in text and "from tga" not in text
