"""tga-train as a user calls it: arguments in, files and a table or one message out."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from tests.tiny import tiny_llm, write_tiny_llava_json, write_tiny_parts
from tests.tiny_clip import random_captions, write_tiny_clip
from tga.cli import half_precision, train
from tga.cli.evaluate import main as evaluate_main
from tga.cli.train import main
from tga.training.base_model import BaseModel
from tga.training.callbacks import read_metrics
from tga.training.checkpoint import read_checkpoint

DOCS = Path(__file__).resolve().parents[2] / "docs" / "train.md"


def call(monkeypatch: pytest.MonkeyPatch, directory: Path, *arguments: str) -> int:
    """Run tga-train in this process, in `directory`; its exit code."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["tga-train", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """llm/, vision_tower/, train.json, images/, captions.txt, retriever/ and neighbours.parquet in one directory."""
    write_tiny_parts(tmp_path)
    write_tiny_llava_json(tmp_path)
    (tmp_path / "captions.txt").write_text("\n".join(random_captions(30)))
    write_tiny_clip(tmp_path / "retriever")
    ids = [record["id"] for record in json.loads((tmp_path / "train.json").read_text())]
    table = {"id": ids, "texts": [[f"A neighbour of {key}.", "Another."] for key in ids]}
    pq.write_table(pa.table(table), tmp_path / "neighbours.parquet")
    return tmp_path


TINY = [
    "model.llm=llm", "model.vision_tower=vision_tower", "data.json=train.json", "data.image_root=images",
    "training.batch_size=2", "training.log_every=1", "training.accelerator=cpu", "run_dir=run",
]  # fmt: skip


def summary(directory: Path) -> dict[str, float]:
    return json.loads((directory / "run" / "summary.json").read_text())


def test_the_whole_path_from_a_corpus_to_an_exported_directory(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [{"id": str(i), "image": f"images/000{i}.png", "prompt": "What is it?", "format": "chat", "group": "g",
                  "expected": ["car"], "caption": "A car."} for i in range(2)]  # fmt: skip
    (world / "q.jsonl").write_text("\n".join(json.dumps(row) for row in questions))
    arguments = [
        *TINY, "data.captions=captions.txt", "data.index_dir=index", "encoder.name=local-dir:retriever",
        "data.neighbours_k=3", "evaluation.root=.", "+evaluation.metrics.image_dsr={file: q.jsonl, judge: refusal}",
        "evaluation.max_new_tokens=3",
    ]  # fmt: skip
    assert call(monkeypatch, world, *arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"Output directory: {world / 'run'}"
    assert "image_dsr" in shown.out and "projector" in shown.err and "ckpt_path=last" in shown.err
    found = summary(world)
    assert found["steps"] == 4 and found["samples"] == 8 and found["method"] == "tga"
    assert found["guide_gradient_norm"] > 0 and found["image_dsr_n"] == 2 and found["peak_rss_mib"] > 50
    assert found["total_s"] > found["train_s"] > 0
    assert [row["step"] for row in read_metrics(world / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    said = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    assert {key for key in found if not key.startswith(("version_", "image_dsr"))} <= said
    assert {key for row in read_metrics(world / "run" / "metrics.jsonl") for key in row} <= said
    assert (world / "index" / "neighbours.parquet").is_file()
    model = LlavaForConditionalGeneration.from_pretrained(world / "run" / "hf")
    AutoProcessor.from_pretrained(world / "run" / "hf")
    trained = read_checkpoint(world / "run" / "checkpoints" / "step-00000004.ckpt")
    name = "model.multi_modal_projector.linear_1.weight"
    torch.testing.assert_close(model.get_parameter(name), trained.weights[name])


METHODS = [
    "tga", "tga_centred", "tga_centred_sif", "tga_contrastive", "tga_paper", "tga_released", "tga_fixed_layers",
    "tga_located", "regap", "tga_regap", "baseline",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, f"alignment={method}", "data.neighbours=neighbours.parquet", "export=null"]
    arguments += ["alignment.layers=[1,2,3]"] if method in ("tga_released", "tga_located") else []
    assert call(monkeypatch, world, *arguments) == 0
    found = summary(world)
    assert found["steps"] == 4
    if method == "baseline":
        assert found["guide_gradient_norm"] is None and "loss_tga_pair" not in found
    else:
        assert found["guide_gradient_norm"] > 0
        assert (found.get("loss_tga_rank", 0) != 0) is method.startswith("tga")
        assert ("regap_alpha" in found) is method.endswith("regap")
    said = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    assert {key for key in found if not key.startswith("version_")} <= said


@pytest.mark.parametrize("pooling", ["mean", "sif"])
def test_stored_targets_give_the_losses_of_online_ones(
    pooling: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*TINY, "data.neighbours=neighbours.parquet", "export=null", "alignment=tga_centred"]
    common.append(f"alignment.text_pooling={pooling}")
    assert call(monkeypatch, world, *common, "run_dir=online") == 0
    stored = [*common, "alignment.targets=stored", "data.targets_dir=targets"]
    assert call(monkeypatch, world, *stored, "run_dir=stored") == 0
    assert "Text targets: 16 texts x 3 layers x 32 in float32" in capsys.readouterr().err
    rows = {name: read_metrics(world / name / "metrics.jsonl") for name in ("online", "stored")}
    for key in ("loss_tga_pair", "loss_tga_rank", "loss_lm"):
        assert [row[key] for row in rows["stored"]] == pytest.approx([row[key] for row in rows["online"]], rel=1e-5)


def test_what_stands_for_a_text_changes_the_losses_and_belongs_to_the_run(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*TINY, "data.neighbours=neighbours.parquet", "export=null", "training.max_steps=2"]
    first, described = [], []
    for number, chosen in enumerate((["text_pooling=mean"], ["text_pooling=sif"], ["sif_a=0.1"])):
        overrides = [f"alignment.{key}" for key in chosen]
        assert call(monkeypatch, world, *common, *overrides, f"run_dir=run{number}", "alignment=tga") == 0
        first.append(read_metrics(world / f"run{number}" / "metrics.jsonl")[0]["tga_cosine"])
        described.append(
            read_checkpoint(world / f"run{number}" / "checkpoints" / "step-00000002.ckpt").hyper_parameters
        )
    assert len({round(value, 4) for value in first}) == 3, first
    # A run on plain means says what it said before there was another pooling, so that older ones go on.
    assert not {"text_pooling", "sif_a"} & set(described[0]["alignment"]) and "token_weights" not in described[0]
    assert described[1]["alignment"]["sif_a"] == 0.001 and described[2]["alignment"]["text_pooling"] == "sif"
    assert described[1]["token_weights"] != described[2]["token_weights"]
    capsys.readouterr()
    assert call(monkeypatch, world, *common, "alignment=tga", "run_dir=run0", "ckpt_path=last") == 1
    assert "alignment.text_pooling was not set and is sif" in capsys.readouterr().err


def test_a_run_is_not_continued_with_captions_of_other_words(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "data.neighbours=neighbours.parquet", "export=null", "alignment=tga", "training.save_every=2"]
    assert call(monkeypatch, world, *arguments) == 0
    records = json.loads((world / "train.json").read_text())
    records[0]["conversations"][-1]["value"] = "Two cats on a chair, and a dog."
    (world / "train.json").write_text(json.dumps(records))
    (world / "run" / "checkpoints" / "step-00000004.ckpt").unlink()
    capsys.readouterr()
    assert call(monkeypatch, world, *arguments, "ckpt_path=last") == 1
    assert "The captions are not those that the checkpoint's run began with" in capsys.readouterr().err


def test_swapped_words_change_the_losses_and_belong_to_the_run(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "alignment=baseline", "training.max_steps=2", "export=null"]
    losses = []
    for number, share in enumerate(("0", "1.0")):
        assert call(monkeypatch, world, *arguments, f"data.swapped_words={share}", f"run_dir=run{number}") == 0
        losses.append([row["loss_lm"] for row in read_metrics(world / f"run{number}" / "metrics.jsonl")])
    assert losses[0] != losses[1]
    capsys.readouterr()
    assert call(monkeypatch, world, *arguments, "data.swapped_words=0", "run_dir=run1", "ckpt_path=last") == 1
    assert "swapped_words was 1.0 and is not set" in capsys.readouterr().err


def test_a_run_is_not_continued_with_other_retrieved_texts(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "data.captions=null", "alignment.layers=[1]", "export=null", "ckpt_path=null"]
    assert call(monkeypatch, world, *arguments, "data.neighbours=neighbours.parquet") == 0
    (world / "neighbours.parquet").rename(world / "others.parquet")
    capsys.readouterr()
    assert call(monkeypatch, world, *arguments, "data.neighbours=others.parquet", "ckpt_path=last") == 1
    message = capsys.readouterr().err
    assert "retrieval.neighbours was neighbours.parquet and is others.parquet" in message


def test_llava7b_runs_with_tiny_parts(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Vicuna is stored, beside a tower in float32: in float16, with settings for sampling that it does not switch on.
    tiny_llm().half().save_pretrained(world / "llm")
    sampling = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}
    (world / "llm" / "generation_config.json").write_text(json.dumps(sampling))
    arguments = [
        "+experiment=llava7b", *TINY[:4], "run_dir=run", "data.captions=null", "data.neighbours=neighbours.parquet",
        "alignment.layers=[1,2]", "training.accelerator=cpu", "training.num_workers=0",
    ]  # fmt: skip
    assert call(monkeypatch, world, *arguments) == 0
    trained = read_checkpoint(world / "run" / "checkpoints" / "step-00000001.ckpt")
    weights = set(trained.weights)
    assert {value.dtype for value in trained.weights.values()} == {torch.float32}
    assert all(name.startswith("model.multi_modal_projector.") for name in weights) and len(weights) == 4
    assert trained.hyper_parameters["training"]["learning_rate"] == 1e-3
    training = trained.hyper_parameters["training"]
    assert training["batch_size"] * training["accumulate_batches"] == 32
    assert trained.hyper_parameters["training"]["warmup_ratio"] == 0.03
    exported = AutoModelForImageTextToText.from_pretrained(world / "run" / "hf")
    assert exported.dtype == torch.float16 and summary(world)["total_s"] > 0
    settings = exported.generation_config
    assert not settings.do_sample and settings.temperature in (None, 1.0) and settings.top_p in (None, 1.0)


def test_a_finished_run_is_continued_without_another_step(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, "alignment=baseline", "export=null"]
    assert call(monkeypatch, world, *arguments) == 0
    rows = read_metrics(world / "run" / "metrics.jsonl")
    assert call(monkeypatch, world, *arguments, "ckpt_path=last") == 0
    assert read_metrics(world / "run" / "metrics.jsonl") == rows
    assert summary(world)["steps"] == 4 and summary(world)["samples"] == 0


def test_fast_dev_run_takes_two_steps(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, world, *TINY, "alignment=baseline", "+debug=fast_dev_run", "export=null") == 0
    assert summary(world)["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+experiment=nothing"], ["nothing", "mini_baseline", "llava7b"]),
        (["alignment=nothing"], ["nothing", "tga_centred", "baseline"]),
        (["training.learning_rat=1"], ["learning_rat"]),
        (["training.learning_rate=-1"], ["learning_rate=-1", "positive"]),
        (["training.precision=16"], ["32-true", "bf16-mixed"]),
        (["alignment.layers=[2,4]"], ["[4]", "0", "3"]),
        (["alignment.reduction=max"], ["max", "sum, mean"]),
        (["alignment.target=retrieved", "alignment.retrieved=none"], ["alignment.retrieved=loss"]),
        (["alignment=regap", "model.train=[projector,language_model]"], ["ReGap", "alignment.regap.force=true"]),
        (["alignment.targets=stored"], ["data.targets_dir=DIRECTORY"]),
        (["alignment.targets=stored", "data.targets_dir=t", "model.train=[language_model]"], ["frozen", "online"]),
        (["alignment=regap", "training.lm_weight=0"], ["LM loss", "alignment.regap.weight=NUMBER"]),
        (["data.json=elsewhere.json"], ["elsewhere.json"]),
        (["data.image_root=elsewhere"], ["8 pictures are missing", "0000.png"]),
        (["data.template=other"], ["other", "vicuna_v1"]),
        (["data.neighbours=null"], ["data.captions=PATH"]),
        (["data.max_length=3"], ["sample 0000", "first 3"]),
        (["ckpt_path=last"], ["step-*.ckpt", "run_dir"]),
        (["ckpt_path=elsewhere.ckpt"], ["elsewhere.ckpt"]),
        (["model.llm=elsewhere"], ["elsewhere"]),
        (["model.dtype=float16"], ["float16", "bfloat16"]),
        (["model.train=[nose]"], ["nose", "projector"]),
        (["+training.speed=9"], ["speed", "learning_rate"]),
        (["model.calibration={eps: 0.1}"], ["output_std_ratio"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_nothing_is_written(
    arguments: list[str],
    said: list[str],
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = call(monkeypatch, world, *TINY, "data.neighbours=neighbours.parquet", *arguments)
    lines = capsys.readouterr().err.splitlines()  # a mistake found late stands below what the run said before
    message = lines[-1]
    assert code == 1
    assert message.startswith("Error: ") and not any("Error" in line or "Traceback" in line for line in lines[:-1])
    assert all(part in message for part in said), message
    assert not (world / "run" / "checkpoints").exists() and not (world / "run" / "summary.json").exists()


CORPUS = [
    "data.captions=captions.txt",
    "data.index_dir=index",
    "encoder.name=local-dir:retriever",
    "data.neighbours_k=3",
]
METRIC = "+evaluation.metrics.image_dsr={file: q.jsonl, judge: refusal}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ckpt_path=elsewhere.ckpt"], "elsewhere.ckpt"),
        (["ckpt_path=last"], "step-*.ckpt"),
        (["model.train=[nose]"], "nose"),
        (["model.train=[projector,language_model]", "export=llava"], "export=llava"),
        (["alignment.text_pooling=max"], "alignment.text_pooling has no such option. Given: max. Allowed: mean, sif"),
        (["alignment.sif_a=0"], "alignment.sif_a is not what it must be. Given: 0. Allowed: a number from 1e-09"),
        (["data.template=other"], "data.template has no such option. Given: other"),
        (["evaluation.chat_template=other"], "evaluation.chat_template has no such option"),
        (["evaluation.plain_template=other"], "evaluation.plain_template has no such option"),
        (["export=onnx"], "export has no such option. Given: onnx. Allowed: hf, llava, null"),
        (["model.dtype=bfloat16"], "precision 32-true"),
        (["training.accelerator=tpu"], "training.accelerator has no such option"),
        (["evaluation.root=.", METRIC.replace("refusal", "taste")], "unknown judge"),
        ([METRIC], "evaluation.root=DIR"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_is_prepared_or_loaded(
    arguments: list[str],
    said: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    for name in ("_load", "ensure_index"):
        monkeypatch.setattr(train, name, heavy)
    code = call(monkeypatch, world, *TINY, *CORPUS, *arguments)
    message = capsys.readouterr().err
    assert code == 1 and message.startswith("Error: ") and message.count("\n") == 1 and said in message, message
    assert not (world / "run").exists() and not (world / "index").exists()
    # Where the run first writes what it reads, it does not begin to.
    for name in ("prepare", "require_ready"):
        monkeypatch.setattr(train, name, heavy)
    prepared = ["prepare=mini", f"prepare.root={world}/mini"]
    assert call(monkeypatch, world, *TINY, *CORPUS, *prepared, *arguments) == 1
    assert capsys.readouterr().err == message


def test_all_wrong_settings_are_told_at_once(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["model.dtype=float16", "export=onnx", "data.template=other", "model.train=[nose]", "ckpt_path=a.ckpt"]
    assert call(monkeypatch, world, *TINY, *CORPUS, *wrong) == 1
    message = capsys.readouterr().err
    assert "5 problems were found" in message and message.count("\n") == 6
    assert all(part in message for part in ("float16", "onnx", "other", "nose", "a.ckpt"))


def test_wrong_settings_data_and_model_are_told_at_once(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [
        "export=onnx", "training.learning_rate=-1", "data.json=elsewhere.json", "data.captions=none.txt",
        "encoder.kind=word2vec", "model.llm=nowhere/llm", "model.vision_tower=nowhere/tower", "ckpt_path=a.ckpt",
    ]  # fmt: skip
    assert call(monkeypatch, world, *TINY, *CORPUS, *wrong) == 1
    message = capsys.readouterr().err
    for part in ("onnx", "learning_rate=-1", "elsewhere.json", "none.txt", "word2vec", "nowhere/llm", "a.ckpt"):
        assert part in message, message
    assert "nowhere/tower" in message and "8 problems were found before anything was loaded" in message
    assert not (world / "run").exists() and not (world / "index").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_that_is_slow_at_bfloat16_is_told_of_at_the_start(
    dtype: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(half_precision, "product_s", {torch.bfloat16: 0.04, torch.float32: 0.001}.__getitem__)
    half = ["training.precision=bf16-mixed", f"model.dtype={dtype}", "alignment=baseline", "training.max_steps=1"]
    assert call(monkeypatch, world, *TINY, *half, "export=null") == 0
    said = capsys.readouterr().err.splitlines()
    [notice] = [line for line in said if "bfloat16 takes" in line]
    assert notice == said[0] and notice.startswith("Notice: bfloat16 takes about 40 times as long as float32")
    assert "training.precision=32-true" in notice and ("model.dtype=float32" in notice) == (dtype == "bfloat16")
    assert call(monkeypatch, world, *TINY, "alignment=baseline", "training.max_steps=1", "run_dir=again") == 0
    assert "bfloat16 takes" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["alignment.layers=[2,4]"], "Layer numbers outside"),
        (["alignment=regap", "alignment.retrieved=loss", "alignment.centred=true"], "nothing to centre"),
        (["encoder.name=local-dir:nowhere"], "The encoder's directory does not exist"),
        (["encoder.kind=word2vec"], "Unknown kind of encoder"),
        (["data.captions=none.txt"], "none.txt"),
        (["index.dtype=int8"], "Unknown dtype"),
        (["model.vision_tower=nowhere/at/all"], "nowhere/at/all"),
        (["evaluation.root=.", METRIC], "question file does not exist"),
        (["data.max_length=3"], "sample 0000"),
    ],
)
def test_what_the_settings_name_is_checked_before_the_model_is_loaded_and_the_index_built(
    arguments: list[str],
    said: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(BaseModel, "load", heavy)
    monkeypatch.setattr(train, "ensure_index", heavy)
    assert call(monkeypatch, world, *TINY, *CORPUS, *arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ") and said in message, message
    assert not (world / "run").exists() and not (world / "index").exists()


def test_a_refused_run_leaves_the_directory_of_the_other_as_it_was(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "alignment=baseline", "export=null"]
    assert call(monkeypatch, world, *arguments) == 0
    before = {path: path.read_bytes() for path in (world / "run").rglob("*") if path.is_file()}
    assert call(monkeypatch, world, *arguments, "seed=7") == 1
    assert "checkpoints of another run" in capsys.readouterr().err
    assert call(monkeypatch, world, *arguments, "seed=7", "training.epochs=2", "ckpt_path=last") == 1
    message = capsys.readouterr().err
    assert "training.seed was 0 and is 7" in message and "training.epochs was 1 and is 2" in message
    assert "base_model.seed was 0 and is 7" in message
    neighbours = ["alignment=tga", "data.neighbours=neighbours.parquet", "model.llm=llm/../llm"]
    assert call(monkeypatch, world, *TINY, "export=null", *neighbours, "ckpt_path=last") == 1
    message = capsys.readouterr().err
    assert (
        "method was baseline and is tga" in message and "objectives.tga.pair_weight was not set and is 1.5" in message
    )
    assert f"base_model.llm was {world / 'llm'} and is" in message
    assert {path: path.read_bytes() for path in (world / "run").rglob("*") if path.is_file()} == before


def test_a_model_in_bfloat16_is_evaluated_as_the_exported_one(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen parts are bfloat16 and what trained is float32; both paths ask a model of one dtype."""
    rows = [{"id": str(i), "image": f"images/000{i}.png", "prompt": f"What is {i}?", "format": "chat", "group": "g",
             "expected": ["car"], "caption": f"A car and {i} dogs."} for i in range(4)]  # fmt: skip
    (world / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    evaluation = ["evaluation.root=.", METRIC, "evaluation.max_new_tokens=6",
                  "+evaluation.metrics.cosine={file: q.jsonl, kind: cosine, layers: [0, 2]}"]  # fmt: skip
    half = ["model.dtype=bfloat16", "training.precision=bf16-mixed", "alignment=baseline"]
    assert call(monkeypatch, world, *TINY, *half, *evaluation, "training.learning_rate=0.05") == 0
    found = summary(world)
    answers = [json.loads(line)["answer"] for line in (world / "run" / "answers.jsonl").read_text().splitlines()]
    monkeypatch.setattr(sys, "argv", ["tga-evaluate", "models={m: run/hf}", "dtype=bfloat16", "device=cpu",
                                      "run_dir=again", *evaluation])  # fmt: skip
    evaluate_main()
    again = json.loads((world / "again" / "summary.json").read_text())
    assert [
        json.loads(line)["answer"] for line in (world / "again" / "answers.jsonl").read_text().splitlines()
    ] == answers
    for key in ("cosine_matched_layer_0", "cosine_matched_layer_2", "image_dsr", "image_dsr_n"):
        assert found[key] == again[key], key


def test_values_without_a_default_are_all_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path) == 1
    message = capsys.readouterr().err
    assert all(key in message for key in ("data.json", "data.image_root", "model.llm", "model.vision_tower"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["training.batch_size=abc"], "training.batch_size is not what it must be. Given: abc. Allowed: a whole"),
        (["training.betas=0.9"], "training.betas is not what it must be. Given: 0.9. Allowed: a list"),
        (["training.num_workers=two"], "training.num_workers"),
        (["training.learning_rate=nan"], "training.learning_rate is not what it must be"),
        (["model.lora=true"], "model.lora is not what it must be. Given: True"),
        (["model.calibration=3"], "model.calibration is not what it must be"),
        (["model.train=projector"], "model.train is not what it must be. Given: projector. Allowed: a list of texts"),
        (["alignment.layers=5"], "alignment.layers is not what it must be. Given: 5"),
        (["alignment.pair_weight=abc"], "alignment.pair_weight"),
        (["data.max_length=abc"], "data.max_length"),
        (["data.limit=-1"], "data.limit is not what it must be. Given: -1. Allowed: a whole number from 1, or null"),
        (["data.neighbours_used=50"], "More neighbours would be used than are kept"),
        (["seed=abc", "model.seed=0", "training.seed=0"], "seed is not what it must be. Given: abc"),
        (["run_dir=captions.txt"], "run_dir is not what it must be. Given: captions.txt. Allowed: a directory"),
        (["evaluation.root=.", METRIC, "evaluation.batch_size=0"], "evaluation.batch_size is not what it must be"),
        (["evaluation.root=.", METRIC, "evaluation.max_new_tokens=0"], "evaluation.max_new_tokens"),
        (["evaluation.root=.", "+evaluation.metrics.x=pairs.jsonl"], "evaluation.metrics.x is not what it must be"),
        (["evaluation.root=.", "+evaluation.metrics.x={file: pairs.jsonl, kind: cosine, layers: [99]}"],
         "Layer numbers outside the language model. Given: [99]"),
        (["evaluation.root=.", "+evaluation.metrics.x={file: broken.jsonl}"], "1 of 1 pictures of broken.jsonl are no"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_stops_the_run_before_anything_is_loaded(
    arguments: list[str],
    said: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def heavy(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    for name in ("_load", "ensure_index"):
        monkeypatch.setattr(train, name, heavy)
    pair = {"id": "a", "prompt": "", "image": "images/0000.png", "caption": "A car.", "format": "plain"}
    (world / "pairs.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps({**pair, "id": "b"}) + "\n")
    (world / "broken.jsonl").write_text(json.dumps({**pair, "image": "captions.txt"}) + "\n")
    (world / "q.jsonl").write_text(json.dumps({"id": "a", "prompt": "Hello"}) + "\n")
    assert call(monkeypatch, world, *TINY, *CORPUS, *arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ") and "Traceback" not in message and said in message, message
    assert not (world / "run").exists() and not (world / "index").exists()
