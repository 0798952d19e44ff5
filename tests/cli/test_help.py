"""--help of every command: what it does, its groups, and each key with what its config file says of it."""

from __future__ import annotations

import sys

import pytest

from tests.test_configs import COMMANDS, CONF, leaves, read
from tga.cli.evaluate import main as evaluate
from tga.cli.help import head, help_text, key_comments
from tga.cli.train import main as train

# Where a key is explained for all the options and commands that have it.
EXPLAINED = (
    "training/default", "evaluation/none", "alignment/tga", "model/llava_parts", "data/llava_json", "index/default",
    "steering/cmrm", "train", "evaluate", "export", "build_index", "compare", "steer", "verify_data",
)  # fmt: skip
# Their group, or the key before them, says it.
PLAIN = {"evaluation.judge_model.safe", "steering.choose", "steering.method", "steering.choose_root", "export.model"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str) -> None:
    text = help_text(command, [])
    assert text.startswith(f"tga-{command.replace('_', '-')}")
    assert "Keys (KEY=VALUE" in text and "\ntraining\n" in text and "  fsdp2  Many processes" in text


def test_keys_have_the_comments_of_the_files_that_are_chosen() -> None:
    text = help_text("train", ["+experiment=mini", "alignment=tga_centred"])
    lines = [line.strip() for line in text.splitlines()]
    assert "reduction: mean  # sum | mean, over layers" in lines  # from alignment/tga, which tga_centred builds upon
    assert "pair_weight: 4.0  # of the term that draws the image to its text" in lines
    assert any(line.startswith("run_dir: outputs/train/${name}/${now:") for line in lines)
    assert any(
        line.startswith("template: plain  # plain (") and "tokenizer (the chat template" in line for line in lines
    )
    assert any(line.startswith("* tga_centred  TGA with centred cosines") for line in lines)
    assert "max_length: 256  # tokens of a prompt, a caption, a retrieved text" in lines


@pytest.mark.parametrize("name", EXPLAINED)
def test_every_key_is_explained(name: str) -> None:
    path = CONF / f"{name}.yaml"
    comments = key_comments(path.read_text(encoding="utf-8"))
    group = path.parent.name if path.parent != CONF else path.stem
    silent = []
    for parts, _ in leaves({key: value for key, value in read(path).items() if key not in ("defaults", "hydra")}):
        explained = [".".join(parts[: n + 1]) for n in range(len(parts))]
        known = PLAIN & {f"{group}.{key}" for key in explained}
        if not known and "objectives" not in parts and not any(key in comments for key in explained):
            silent.append(explained[-1])
    assert silent == []


def test_comments_are_read_as_they_stand() -> None:
    text = """# A file.
# Needs: much
#   more.

# said above
a: "x # y"  # behind
b:
  c: 1                # begins
                      #   and goes on
  # above d
  d: [1,
    2]
defaults: []  # not a key
"""
    assert head(text) == "A file.\nNeeds: much more."
    assert key_comments(text) == {"a": "said above behind", "b.c": "begins and goes on", "b.d": "above d"}


@pytest.mark.parametrize("sign", ["--help", "-h"])
def test_a_command_prints_it_and_its_mistakes(
    sign: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tga-evaluate", sign, "evaluation.limit=7"])
    evaluate()
    assert "limit: 7  # questions per metric (per scene" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tga-train", "alignment=none_such", sign])
    with pytest.raises(SystemExit) as stopped:
        train()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("Error: There is no alignment of this name. Given: none_such.")
