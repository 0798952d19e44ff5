"""tga-build-index as a user calls it: arguments in, files and a summary out, or one message and exit code 1."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retrieval_index.encoders import EncoderSpec, load_encoder
from retrieval_index.index import CaptionIndex
from tests.tiny_clip import random_captions, write_pictures, write_tiny_clip
from tga.cli import build_index
from tga.cli.build_index import EncoderChoice, ensure_index, ensure_neighbours, main
from tga.cli.locks import claimed_output
from tga.data.llava_json import load_llava_json
from tga.errors import UserError

CAPTIONS = [*random_captions(19), "A [red] car [/]"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_clip(tmp_path_factory.mktemp("encoder") / "clip")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """captions.txt, images/*.png and data.json."""
    (tmp_path / "captions.txt").write_text("\n".join([*CAPTIONS, CAPTIONS[0].upper()]), encoding="utf-8")
    records = [
        {"id": path.stem, "image": path.name, "conversations": [{"from": "human", "value": "<image>"}, answer]}
        for path, answer in zip(
            write_pictures(tmp_path / "images", 5),
            [{"from": "gpt", "value": caption} for caption in CAPTIONS[:5]],
            strict=True,
        )
    ]
    (tmp_path / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in this process, in `world`; (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(world)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tga-build-index", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def files(world: Path) -> list[str]:
    return sorted(str(path.relative_to(world)) for path in world.rglob("*") if path.is_file() and path.suffix != ".png")


def test_build_join_and_ask_in_one_command(call, world: Path, encoder: str) -> None:
    code, out, err = call(
        "captions=captions.txt", "out=index", f"encoder.name={encoder}", "encoder.device=cpu", "neighbours=data.json",
        "image_root=images", "k=3", "query=images/001.png",
    )  # fmt: skip
    assert code == 0, err
    assert "Encoding captions" in err and "Searching neighbours" in err
    loaded = load_encoder(EncoderSpec("open_clip", encoder), device="cpu")
    index = CaptionIndex.open("index", encoder=loaded)
    scores, rows = index.search(loaded.encode_images([Path("images/001.png")], batch_size=1), k=3)
    for score, caption in zip(scores[0], index.captions(rows[0]), strict=True):
        assert f"{score:.4f}" in out and caption in out
    assert out.splitlines()[-1] == "Output directory: index"
    assert pq.read_table("index/neighbours.parquet").num_rows == 5
    summary = json.loads(Path("index/summary.json").read_text())
    expected = {"captions": 20, "captions_read": 21, "captions_duplicate": 1, "neighbours_samples": 5, "width": 16}
    assert summary.items() >= expected.items()
    assert summary["index_built"] is True and summary["total_s"] >= summary["index_s"] > 0
    assert len(summary["config_hash"]) == 16
    assert "Index: exact flat over 20 x 16" in out
    names = "duplicates/00000.arrow index/00000.faiss shards/00000.arrow shards/00000.npy".split()
    made = [f"index/{name}" for name in (*names, "manifest.json", "neighbours.parquet", "summary.json")]
    assert files(world) == sorted([*made, "captions.txt", "data.json"])


def test_the_encoder_of_an_index_is_remembered(
    call, world: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "retriever").symlink_to(encoder.removeprefix("local-dir:"))
    arguments = ["captions=captions.txt", "out=index", "encoder.name=local-dir:retriever", "encoder.device=cpu"]
    assert call(*arguments)[0] == 0
    before = (world / "index/summary.json").read_bytes()
    monkeypatch.chdir(world / "images")
    code, out, err = call("out=../index", "query=000.png", "k=20")
    assert code == 0, err
    assert "A [red] car [/]" in out  # no markup
    assert (world / "index/summary.json").read_bytes() == before  # a question writes nothing


def test_what_is_there_is_not_built_again(call, world: Path, encoder: str) -> None:
    arguments = [
        "captions=captions.txt",
        "out=index",
        f"encoder.name={encoder}",
        "neighbours=data.json",
        "image_root=images",
    ]
    assert call(*arguments, "k=2")[0] == 0
    times = {name: (world / "index" / name).stat().st_mtime_ns for name in ("manifest.json", "neighbours.parquet")}
    code, out, _ = call(*arguments, "k=2")
    assert code == 0 and "up to date" in out
    assert times == {name: (world / "index" / name).stat().st_mtime_ns for name in times}
    summary = json.loads((world / "index" / "summary.json").read_text())
    assert summary["index_built"] is False and summary["neighbours_written"] is False


def test_other_captions_are_refused_unless_told_to_overwrite(call, world: Path, encoder: str) -> None:
    arguments = ["captions=captions.txt", "out=index", f"encoder.name={encoder}"]
    assert call(*arguments)[0] == 0
    (world / "captions.txt").write_text("a dog\na cat", encoding="utf-8")
    code, _, err = call(*arguments)
    assert code == 1 and "overwrite=true" in err and "20 captions" in err
    assert len(CaptionIndex.open("index")) == 20
    assert call(*arguments, "overwrite=true")[0] == 0
    assert len(CaptionIndex.open("index")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["captions=none.txt", "encoder.name=ENCODER"], "A caption file does not exist. Given: none.txt."),
        (["captions=captions.txt"], "No encoder was named."),
        (["captions=captions.txt", "encoder.name=local-dir:none"], "The encoder's directory does not exist."),
        (["captions=captions.txt", "encoder.name=ENCODER", "encoder.kind=x"], "Unknown kind of encoder. Given: x."),
        (["captions=captions.txt", "encoder.name=ENCODER", "query=none.png"], "The picture does not exist."),
        (
            ["captions=captions.txt", "encoder.name=ENCODER", "query=images/000.png", "k=21"],
            "Given: k=21. Allowed: 1 to 20.",
        ),
        (
            ["captions=captions.txt", "encoder.name=ENCODER", "neighbours=data.json", "image_root=."],
            "5 pictures are missing from data.json",
        ),
        (["captions=captions.txt", "encoder.name=ENCODER", "index.dtype=int8"], "Unknown dtype. Given: int8."),
        (["captions=empty.txt", "encoder.name=ENCODER"], "The corpus holds no captions."),
        (["query=images/000.png"], "There is no complete caption index (no manifest.json). Given: index."),
        ([], "There is nothing to do."),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    call, world: Path, encoder: str, arguments: list[str], message: str
) -> None:
    (world / "empty.txt").write_text("\n \n")
    before = files(world)
    code, out, err = call("out=index", *[argument.replace("ENCODER", encoder) for argument in arguments])
    assert code == 1 and out == ""
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    assert message in err
    assert files(world) == before and not (world / "index").exists() and not (world / "index.building").exists()


def test_the_output_directory_must_be_named(call, encoder: str) -> None:
    code, _, err = call("captions=captions.txt", f"encoder.name={encoder}")
    assert code == 1 and "Values without a default are missing. Given: ['out']. To change it: out=VALUE." in err


def test_an_index_of_another_encoder_is_refused(call, world: Path, encoder: str) -> None:
    assert call("captions=captions.txt", "out=index", f"encoder.name={encoder}")[0] == 0
    other = write_tiny_clip(world / "other", seed=1)
    for task in (["query=images/000.png"], ["neighbours=data.json", "image_root=images"]):
        code, _, err = call("out=index", f"encoder.name={other}", *task)
        assert code == 1 and "was made with another encoder" in err and "Allowed: open_clip:local:" in err
    assert not (world / "index" / "neighbours.parquet").exists()


def test_two_builds_of_faiss_are_refused(call, world: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [SimpleNamespace(metadata={"Name": name}) for name in ("faiss-cpu", "faiss-gpu")]
    monkeypatch.setattr(metadata, "distributions", lambda: both)
    code, _, err = call("captions=captions.txt", "out=index", f"encoder.name={encoder}")
    assert code == 1 and "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-cpu" in err
    assert not (world / "index").exists()


def test_two_commands_on_one_place_build_one_after_the_other(
    call, world: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = build_index.ensure_index
    held: list[bool] = []

    def watched(*arguments, **options):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), claimed_output(world / "index", option="out"):
            pass
        held.append(True)
        return building(*arguments, **options)

    monkeypatch.setattr(build_index, "ensure_index", watched)
    assert call("captions=captions.txt", "out=index", f"encoder.name={encoder}")[0] == 0
    assert held == [True] and not (world / ".index.lock").exists()


def test_ensure_functions_build_once_and_again_when_the_inputs_change(world: Path, encoder: str) -> None:
    choice = EncoderChoice("open_clip", encoder, device="cpu")
    index, parquet = world / "index", world / "neighbours.parquet"

    def ensure() -> tuple[bool, bool]:
        built = ensure_index([world / "captions.txt"], index, choice, shard_rows=8)
        samples = load_llava_json(world / "data.json", world / "images")
        joined = ensure_neighbours(index, samples, parquet, choice, k=2)
        return built, joined is not None

    assert [ensure(), ensure()] == [(True, True), (False, False)]
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(world / "images" / "000.png")
    assert [ensure(), ensure()] == [(False, True), (False, False)]
    (world / "captions.txt").write_text("\n".join(CAPTIONS[2:]), encoding="utf-8")
    assert [ensure(), ensure()] == [(True, True), (False, False)]
    assert CAPTIONS[0] not in {text for row in pq.read_table(parquet).column("texts").to_pylist() for text in row}


def test_what_was_read_and_what_is_there_are_told(call, world: Path, encoder: str) -> None:
    (world / "captions.txt").write_text("\n".join([*CAPTIONS, "", "x" * 2001, CAPTIONS[0].upper()]), encoding="utf-8")
    code, out, err = call("captions=captions.txt", "out=index", f"encoder.name={encoder}")
    assert code == 0, err
    assert "23 records: 20 captions, 1 duplicates, 1 empty, 1 too long; 0 captions cut to what" in out
    assert "index: exact flat; exact" in out


def test_an_index_that_is_there_but_not_as_asked_for_is_refused(call, world: Path, encoder: str) -> None:
    build = ["captions=captions.txt", "out=index", f"encoder.name={encoder}"]
    assert call(*build)[0] == 0
    code, _, err = call(*build, "index.kind=ivf_flat")
    assert code == 1 and "Given: index: index.kind=flat with recall@10 1." in err
    assert "mode=replan index.kind=ivf_flat" in err
    assert call("out=index", "mode=replan", "index.kind=ivf_flat", "index.accept_recall=0")[0] == 0
    manifest = json.loads((world / "index/manifest.json").read_text())
    manifest["index"]["recall"]["value"] = 0.9
    (world / "index/manifest.json").write_text(json.dumps(manifest))
    code, _, err = call(*build)
    assert code == 1 and "with recall@10 0.9. Allowed: index.kind=auto with a recall of 0.95" in err
    assert call(*build, "index.accept_recall=0.9")[0] == 0


def test_data_of_every_format_give_the_same_neighbours(call, world: Path, encoder: str) -> None:
    assert call("captions=captions.txt", "out=index", f"encoder.name={encoder}")[0] == 0
    pictures = sorted((world / "images").glob("*.png"))[:5]
    rows = [(path.stem, path.read_bytes(), caption) for path, caption in zip(pictures, CAPTIONS, strict=False)]
    with tarfile.open(world / "data.tar", "w") as archive:
        for key, picture, caption in rows:
            for suffix, content in (("png", picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    table = dict(zip(("id", "image", "text"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(table), world / "data.parquet")
    columns = ["neighbours_columns.conversations=null", "neighbours_columns.caption=text"]
    for data, options in (("data.json", ["image_root=images"]), ("data.tar", []), ("data.parquet", columns)):
        code, _, err = call("out=index", f"neighbours={data}", f"neighbours_out={data}.neighbours", "k=3", *options)
        assert code == 0, err
    joined = [pq.read_table(world / f"data.{suffix}.neighbours").to_pylist() for suffix in ("json", "tar", "parquet")]
    assert len(joined[0]) == 5 and joined[0] == joined[1] == joined[2]


def test_records_of_the_bad_list_are_left_out_of_a_join(call, world: Path, encoder: str) -> None:
    assert call("captions=captions.txt", "out=index", f"encoder.name={encoder}")[0] == 0
    (world / "images/001.png").unlink()
    join = ["out=index", "neighbours=data.json", "image_root=images", "k=3"]
    code, _, err = call(*join)
    assert code == 1 and "pictures are missing" in err and "neighbours_bad_list=PATH" in err
    bad = {"row": 1, "id": "001", "problem": "missing", "detail": ""}
    (world / "bad.jsonl").write_text(json.dumps(bad) + "\n", encoding="utf-8")
    code, _, err = call(*join, "neighbours_bad_list=bad.jsonl")
    assert code == 0, err
    assert pq.read_table(world / "index/neighbours.parquet")["id"].to_pylist() == ["000", "002", "003", "004"]


def test_an_index_grows_is_planned_again_and_checked(call, world: Path, encoder: str) -> None:
    assert call("captions=captions.txt", "out=index", f"encoder.name={encoder}")[0] == 0
    (world / "more.csv").write_text("caption\n" + "\n".join(["a dog on a dog", CAPTIONS[0]]), encoding="utf-8")
    code, out, err = call("mode=append", "captions=more.csv", "out=index")
    assert code == 0, err
    assert "Added 1 captions; 1 records held captions that were there already." in out
    summary = json.loads((world / "index/summary.json").read_text())
    expected = {"captions": 21, "captions_read": 23, "captions_duplicate": 2, "index_kind": "flat", "index_recall": 1.0}
    assert summary.items() >= expected.items() and summary["index_built"] is True
    assert "in the index already" in call("mode=append", "captions=more.csv", "out=index")[1]
    assert "All 7 files are as the manifest says." in call("mode=verify", "out=index")[1]
    code, out, err = call(
        "mode=replan", "out=index", "index.kind=ivf_flat", "index.accept_recall=0", "index.recall_k=3"
    )
    assert code == 0 and "IVF-Flat over 21 x 16" in out, err
    assert json.loads((world / "index/summary.json").read_text())["index_recall_of"] == "captions"
    (world / "index/shards/00000.npy").write_bytes(b"")
    (world / "new.txt").write_text("two cats", encoding="utf-8")
    for task in (["mode=verify"], ["query=images/000.png"], ["mode=append", "captions=new.txt"]):
        code, _, err = call("out=index", *task)
        assert code == 1 and "00000.npy" in err.splitlines()[-1], err


def test_the_pictures_of_a_data_set_measure_the_recall(call, world: Path, encoder: str) -> None:
    records = [
        {"id": path.stem, "image": path.name, "conversations": [{"from": "human", "value": "<image>"}, answer]}
        for path, answer in zip(
            write_pictures(world / "images", 44), [{"from": "gpt", "value": "a dog"}] * 44, strict=True
        )
    ]
    (world / "data.json").write_text(json.dumps(records), encoding="utf-8")
    arguments = ["captions=captions.txt", "out=index", f"encoder.name={encoder}", "index.kind=hnsw", "index.recall_k=5"]
    code, _, err = call(*arguments)
    assert code == 1 and "must be measured with pictures" in err and "index.queries=FOLDER" in err
    code, _, err = call(*arguments, "neighbours=data.json", "image_root=images", "k=2", "neighbours_search=index")
    assert code == 0, err
    summary = json.loads((world / "index/summary.json").read_text())
    assert (summary["index_recall_of"], summary["index_recall_queries"]) == ("pictures", 22)
    assert summary["index_recall"] >= 0.95 and summary["neighbours_samples"] == 44
    code, _, err = call(*arguments, "index.queries=images", "overwrite=true")
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mode=shrink"], "mode has no such option. Given: shrink."),
        (["engine=spark", "captions=captions.txt"], "engine has no such option. Given: spark."),
        (["mode=append"], "There is nothing to add."),
        (["mode=verify", "captions=captions.txt"], "mode=verify takes no captions."),
        (["mode=append", "captions=captions.txt"], "There is no complete caption index"),
        (["captions=none/*.csv", "encoder.name=x"], "A pattern matches no file."),
        (["captions=captions.txt", "encoder.name=ENCODER", "index.queries=nowhere"], "There are no pictures here"),
        (["captions=captions.txt", "encoder.name=ENCODER", "index.memory_budget=1MiB"], "fits into the memory budget"),
        (["query=images/000.png", "neighbours_search=guess"], "Unknown search. Given: guess."),
        (["query=images/000.png", "k=few"], "k must be a positive whole number. Given: few."),
        (["query=images/000.png", "index.gpus=both"], "Unknown way to use several GPUs. Given: both."),
        (["captions=captions.txt", "encoder.name=ENCODER", "index.shard_rows=big"], "Given: big."),
        (["captions=captions.txt", "encoder.name=ENCODER", "index.kind=ivf_pq"], "Allowed: 256 rows or more"),
        (["captions=captions.txt", "encoder.name=ENCODER", "out=captions.txt/index"], "Nothing can be written here."),
        (["captions=7", "encoder.name=ENCODER"], "The format of a caption file is not read. Given: 7."),
        (["captions=captions.txt", "encoder.name=7"], "Model config for '7' not found"),
        (["captions=captions.txt", "engine=ray", "ray.actors=0"], "ray.actors must be a positive whole number."),
        (["neighbours=none.json"], "There is no data file here. Given: none.json."),
        (["neighbours=images"], "This directory is no data set of save_to_disk"),
        (["neighbours=[data.json,x.tar]"], "A data set is of one format. Given: data.json, x.tar."),
    ],
)
def test_more_mistakes_are_one_message(call, world: Path, encoder: str, arguments: list[str], message: str) -> None:
    code, _, err = call("out=index", *[argument.replace("ENCODER", encoder) for argument in arguments])
    assert code == 1 and message in err and "Traceback" not in err
    assert not (world / "index").exists()
