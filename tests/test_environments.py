"""The declared dependencies as they are installed: the lowest versions together, and the newest that pip finds.

In each environment a run trains, indexes and exports, and each export is loaded in both: every key is there, and the
logits are the same to 1e-4. Needs a package index and some GB of disk; minutes. TGA_ENVIRONMENTS=DIR keeps the
environments there for the next time.
"""

from __future__ import annotations

import configparser
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
LOWEST, NEWEST = "lowest", "newest"
TRAIN = [
    "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "data.image_root=images",
    "data.captions=captions.txt", "data.index_dir=index", "encoder.name=local-dir:retriever", "data.neighbours_k=3",
    "evaluation.chat_template=vicuna_v1", "training.batch_size=2", "training.max_steps=2", "training.accelerator=cpu",
    "training.num_workers=0",
]  # fmt: skip
# Writes tiny parts and data; -c with the directory and this repository, whose tests come last on the path. What
# transformers saves has the names of its own version, so the parts are written by the version that reads them.
WORLD = """
import sys
from pathlib import Path

root = Path(sys.argv[1])
sys.path.append(sys.argv[2])
from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tests.tiny_clip import random_captions, write_tiny_clip
from tests.tiny_sentencepiece import make_sentencepiece

llm, _ = write_tiny_parts(root)
make_sentencepiece(llm)
write_tiny_llava_json(root)
write_tiny_clip(root / "retriever")
(root / "captions.txt").write_text("\\n".join(random_captions(30)), encoding="utf-8")
"""
VERSIONS = """
import json
from importlib import metadata

print(json.dumps({d.name.lower().replace("_", "-"): d.version for d in metadata.distributions()}))
"""
# Loads an export with plain transformers and answers about a fixed picture; -c with the directory and where to write.
READER = """
import sys
import torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
model, report = AutoModelForImageTextToText.from_pretrained(
    sys.argv[1], attn_implementation="eager", output_loading_info=True
)
processor = AutoProcessor.from_pretrained(sys.argv[1])
picture = Image.radial_gradient("L").resize((80, 50)).convert("RGB")
content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is in the picture?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
with torch.no_grad():
    logits = model.eval()(**inputs).logits[0]
keys = {name: sorted(map(str, found)) for name, found in report.items() if found}
found = {"version": transformers.__version__, "keys": keys, "ids": inputs["input_ids"], "logits": logits}
torch.save(found, sys.argv[2])
"""


def requirements(lowest: bool) -> list[str]:
    """What setup.cfg asks for; `name>=1.2` as `name==1.2` for the lowest."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    extra = settings["options.extras_require"]["lora"]
    lines = [line.strip() for line in f"{settings['options']['install_requires']}\n{extra}".splitlines()]
    declared = [line for line in lines if line and not line.startswith("#")]
    return [line.split(",")[0].replace(">=", "==") for line in declared] if lowest else declared


def environment(name: str, where: Path) -> Path:
    """The Python of an environment with these dependencies and this package, made where it is missing."""
    wanted = requirements(lowest=name == LOWEST)
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    python = where / f"{name}-{digest}" / "bin" / "python"
    if not (done := python.parent.parent / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(python.parent.parent)], check=True, timeout=300)
        run(python, "-m", "pip", "install", "--quiet", *wanted, cwd=where, timeout=3600)
        done.touch()
    # The package itself may have changed since.
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(ROOT), cwd=where, timeout=600)
    return python


def run(program: Path, *arguments: str, cwd: Path, timeout: int = 900) -> str:
    """Run in `cwd`, with nothing of this environment's Python; the standard output."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ended = subprocess.run(
        [str(program), *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout
    )
    assert ended.returncode == 0, f"{arguments}\n{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    return ended.stdout


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kept = os.environ.get("TGA_ENVIRONMENTS")
    where = Path(kept).absolute() if kept else tmp_path_factory.mktemp("environments")
    where.mkdir(parents=True, exist_ok=True)
    return {name: environment(name, where) for name in (LOWEST, NEWEST)}


@pytest.fixture(scope="module")
def exported(environments: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By environment, a directory where it has trained, indexed and exported."""
    made = {}
    for name, python in environments.items():
        world = tmp_path_factory.mktemp(name)
        run(python, "-c", WORLD, str(world), str(ROOT), cwd=world)
        run(python.parent / "tga-train", *TRAIN, "run_dir=run", cwd=world)
        run(python.parent / "tga-train", *TRAIN, "run_dir=lora", "export=null", "model.lora={rank: 2}", cwd=world)
        run(python.parent / "tga-export", "checkpoint=run", "output=again", "run_dir=export", cwd=world)
        made[name] = world
    return made


def test_the_lowest_versions_are_those_of_setup_cfg(environments: dict[str, Path]) -> None:
    found = json.loads(run(environments[LOWEST], "-c", VERSIONS, cwd=environments[LOWEST].parent))
    for requirement in requirements(lowest=True):
        name, _, version = requirement.partition("==")
        assert Version(found[name.lower().replace("_", "-")]).base_version == Version(version).base_version, requirement


def test_both_train_index_and_export(exported: dict[str, Path]) -> None:
    for world in exported.values():
        summary = json.loads((world / "run" / "summary.json").read_text())
        assert list((world / "lora" / "checkpoints").glob("*.ckpt"))
        assert summary["steps"] == 2 and (world / "index" / "neighbours.parquet").is_file()
        assert (world / "run" / "hf" / "model.safetensors").is_file() and (world / "again" / "README.md").is_file()


@pytest.mark.parametrize(("written", "read"), list(itertools.product((LOWEST, NEWEST), repeat=2)))
def test_each_export_loads_complete_in_both(
    written: str, read: str, environments: dict[str, Path], exported: dict[str, Path], tmp_path: Path
) -> None:
    answers = {}
    for name in {written, read}:
        run(environments[name], "-c", READER, str(exported[written] / "run" / "hf"), str(tmp_path / name), cwd=tmp_path)
        answers[name] = torch.load(tmp_path / name, weights_only=True)
        assert answers[name]["keys"] == {}, answers[name]["version"]
    assert torch.equal(answers[read]["ids"], answers[written]["ids"])
    torch.testing.assert_close(answers[read]["logits"], answers[written]["logits"], rtol=0, atol=1e-4)
