"""Every shipped experiment takes two steps and exports, with a tiny model in place of the real one."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny import write_tiny_llava_json, write_tiny_parts
from tests.tiny_families import made
from tests.tiny_sentencepiece import make_sentencepiece
from tga.cli.train import main
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import read_checkpoint
from tga.vlm.families import family_of

CONF = Path(__file__).resolve().parents[2] / "conf" / "experiment"
PARTS = ["model.llm=llm", "model.vision_tower=vision_tower"]
# Vicuna's tokenizer is a tokenizer.model, without a chat template.
VICUNA = ["model.llm=vicuna", "model.vision_tower=vision_tower"]
LAYERS = ["alignment.layers=[1,2]"]
NEIGHBOURS = ["data.captions=null", "data.neighbours=neighbours.parquet"]
# What stands in for the real model and its data; everything else is the experiment's own.
TINY = {
    "llava7b": [*VICUNA, *LAYERS, *NEIGHBOURS],
    "llava13b": [*VICUNA, *LAYERS, *NEIGHBOURS],
    "llava7b_mistral": [*PARTS, *NEIGHBOURS],
    "llava7b_finetune": [*VICUNA, "model.projector=projector", "data.json=mix.json"],
    "llava_next_mistral7b": ["model.vlm=llava_next", *LAYERS, *NEIGHBOURS],
    "qwen2_5_vl_7b": ["model.vlm=qwen2_5_vl", *LAYERS, *NEIGHBOURS],
    "sharegpt4v_7b": [*VICUNA, *LAYERS, *NEIGHBOURS],
    "instructblip_7b": ["model.vlm=instructblip", *LAYERS, *NEIGHBOURS],
}
COMMON = [
    "data.json=train.json", "data.image_root=images", "training.batch_size=2", "training.accumulate_batches=1",
    "training.global_batch_size=null", "training.max_steps=2",
    "training.num_workers=0", "training.accelerator=cpu", "training.log_every=1", "run_dir=run", "verify=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, complete models, pictures with captions, their neighbours, and a mix of instructions."""
    root = tmp_path_factory.mktemp("world")
    write_tiny_parts(root)
    shutil.copytree(root / "llm", root / "vicuna")
    make_sentencepiece(root / "vicuna")
    write_tiny_llava_json(root)
    for name in ("llava_next", "qwen2_5_vl", "instructblip"):
        model, processor = made(name)
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    made("llava")[0].save_pretrained(root / "projector")
    records = json.loads((root / "train.json").read_text())
    table = {"id": [r["id"] for r in records], "texts": [[f"A neighbour of {r['id']}."] for r in records]}
    pq.write_table(pa.table(table), root / "neighbours.parquet")
    more = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    mix = [{**record, "conversations": record["conversations"] + more} for record in records[:2]]
    mix += [{"id": records[0]["id"], "image": records[0]["image"], "conversations": records[0]["conversations"]}]
    mix += [{"id": "words", "conversations": more}]
    (root / "mix.json").write_text(json.dumps(mix))
    return root


def test_every_experiment_is_tried() -> None:
    shipped = {path.stem for path in CONF.glob("*.yaml") if not path.stem.startswith("mini")}
    assert shipped == set(TINY)


@pytest.mark.parametrize("experiment", TINY)
def test_two_steps(experiment: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in world.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    arguments = [f"+experiment={experiment}", *COMMON, *TINY[experiment]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tga-train", *arguments])
    main()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] and all(row["loss_lm"] > 0 for row in rows)
    trained = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000002.ckpt")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "hf", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "run" / "hf")
    assert processor.chat_template is not None or experiment == "instructblip_7b"
    projector = family_of(model).projector
    in_projector = {name for name in trained.weights if name.startswith(f"{projector}.")}
    assert in_projector == {name for name, _ in model.named_parameters() if name.startswith(f"{projector}.")}
    if experiment == "llava7b_finetune":
        assert any("language_model" in name for name in trained.weights)
    else:
        assert in_projector == set(trained.weights) and rows[0]["loss_tga_rank"] != 0
        assert rows[0]["guide_gradient_norm"] > 0
    for name, value in trained.weights.items():
        exported = model.get_parameter(name)
        torch.testing.assert_close(exported, value.to(exported.dtype), rtol=1e-2, atol=1e-2)
