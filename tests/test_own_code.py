"""Code that comes with a model is not run wherever its files name it, and nobody is asked: an answer would be yes."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from retrieval_index.encoders import EncoderSpec, load_encoder
from retrieval_index.errors import RetrievalError
from retrieval_index.model_code import ModelCodeError, own_code_refused
from tests.tiny import tiny_llava, write_tiny_parts
from tests.tiny_clip import write_tiny_clip, write_tiny_sentence_model
from tga.cli import build_index, evaluate, export
from tga.errors import UserError
from tga.evaluation.models import load_judge
from tga.training.base_model import BaseModel
from tga.vlm.assemble import assemble_llava, load_llm, load_vlm
from tga.vlm.outline import check_llm, check_vision_tower, outline_llava, outline_vlm
from tga.vlm.pretrained import stored_dtype

ROOT = Path(__file__).resolve().parents[1]
CODE = """
from pathlib import Path
Path({trace!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class C(PretrainedConfig): model_type = "evil"
class M(PreTrainedModel): config_class = C
class P:
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    load = from_pretrained
"""
EVIL_TYPE = {
    "model_type": "evil",
    "auto_map": dict.fromkeys(("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"), "evil.M")
    | {"AutoConfig": "evil.C"},
}
SAID = "brings code of its own"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What is there once `evil.py` has been imported."""
    return tmp_path / "imported"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions on the terminal, each answered with yes."""
    questions: list[str] = []

    def yes(prompt: str = "") -> str:
        questions.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", yes)
    return questions


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vlm`, `llm` and `vision_tower`, before anything is done to them."""
    root = tmp_path_factory.mktemp("good")
    write_tiny_parts(root)
    model, processor = tiny_llava()
    model.save_pretrained(root / "vlm")
    processor.save_pretrained(root / "vlm")
    return root


def change(file: Path, **values: Any) -> None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in (found | values).items() if value is not None}))


def with_code(directory: Path, trace: Path) -> Path:
    (directory / "evil.py").write_text(CODE.format(trace=str(trace)))
    return directory


def config(directory: Path) -> None:
    change(directory / "config.json", **EVIL_TYPE)


def inner_config(directory: Path) -> None:
    """A text config of a class for which there is no AutoModel, naming code that lies in the directory."""
    auto_map = {"AutoModel": f"{directory}--evil.M", "AutoModelForCausalLM": f"{directory}--evil.M"}
    text = {"model_type": "blip_text_model", "auto_map": auto_map, "vocab_size": 400}
    change(directory / "config.json", text_config=text)


def tokenizer(directory: Path) -> None:
    named = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.P", "evil.P"]}}
    change(directory / "tokenizer_config.json", processor_class=None, **named)


def processor(directory: Path) -> None:
    named = {"processor_class": "EvilProcessor", "auto_map": {"AutoProcessor": "evil.P"}}
    for name in ("processor_config.json", "tokenizer_config.json"):
        change(directory / name, **named)


def image_processor(directory: Path) -> None:
    named = {"image_processor_type": "EvilProcessor", "auto_map": {"AutoImageProcessor": "evil.P"}}
    change(directory / "preprocessor_config.json", feature_extractor_type=None, **named)


DTYPE = torch.float32
DOORS: list[tuple[str, Callable[[Path], None], Callable[[Path], object]]] = [
    ("vlm", config, lambda root: load_vlm(str(root / "vlm"))),
    ("vlm", inner_config, lambda root: load_vlm(str(root / "vlm"))),
    ("vlm", processor, lambda root: load_vlm(str(root / "vlm"))),
    ("vlm", config, lambda root: outline_vlm(str(root / "vlm"))),
    ("vlm", inner_config, lambda root: outline_vlm(str(root / "vlm"))),
    ("vlm", processor, lambda root: outline_vlm(str(root / "vlm"))),
    ("vlm", config, lambda root: stored_dtype(str(root / "vlm"), remedy="model.vlm=PATH")),
    ("vlm", config, lambda root: BaseModel(vlm=str(root / "vlm")).load(dtype=None, attn_implementation="eager")),
    ("llm", config, lambda root: load_llm(str(root / "llm"))),
    ("llm", tokenizer, lambda root: load_llm(str(root / "llm"))),
    ("llm", config, lambda root: check_llm(str(root / "llm"))),
    ("llm", tokenizer, lambda root: check_llm(str(root / "llm"))),
    ("llm", config, lambda root: load_judge(str(root / "llm"), dtype="auto", device="cpu", remedy="judge=PATH")),
    ("llm", tokenizer, lambda root: load_judge(str(root / "llm"), dtype="auto", device="cpu", remedy="judge=PATH")),
    ("llm", config, lambda root: assemble_llava(str(root / "llm"), str(root / "vision_tower"))),
    ("llm", tokenizer, lambda root: outline_llava(str(root / "llm"), str(root / "vision_tower"))),
    ("vision_tower", config, lambda root: assemble_llava(str(root / "llm"), str(root / "vision_tower"))),
    ("vision_tower", image_processor, lambda root: outline_llava(str(root / "llm"), str(root / "vision_tower"))),
    ("vision_tower", config, lambda root: check_vision_tower(str(root / "vision_tower"))),
    ("vision_tower", image_processor, lambda root: check_vision_tower(str(root / "vision_tower"))),
]


@pytest.mark.parametrize(("part", "spoil", "load"), DOORS, ids=lambda value: getattr(value, "__name__", None))
def test_no_model_runs_its_code(
    part: str,
    spoil: Callable[[Path], None],
    load: Callable[[Path], object],
    good: Path,
    tmp_path: Path,
    trace: Path,
    asked: list[str],
) -> None:
    for name in ("vlm", "llm", "vision_tower"):
        shutil.copytree(good / name, tmp_path / name)
    spoil(with_code(tmp_path / part, trace))
    with pytest.raises(
        UserError, match=rf"{SAID}.*Given: {tmp_path / part}\. Allowed: .*installed libraries"
    ) as raised:
        load(tmp_path)
    assert raised.value.remedy and not asked and not trace.exists()


def test_a_generate_function_of_a_models_own_stays_out(good: Path, tmp_path: Path, trace: Path) -> None:
    shutil.copytree(good / "llm", tmp_path / "llm")
    (tmp_path / "llm" / "custom_generate").mkdir()
    with_code(tmp_path / "llm" / "custom_generate", trace).joinpath("evil.py").rename(
        tmp_path / "llm" / "custom_generate" / "generate.py"
    )
    model, _ = load_llm(str(tmp_path / "llm"))
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=1)
    assert not trace.exists()


def test_a_model_that_transformers_knows_is_loaded_although_it_brings_code(
    good: Path, tmp_path: Path, trace: Path
) -> None:
    """Many models of the hub have kept the files of the time before transformers knew them."""
    shutil.copytree(good / "llm", tmp_path / "llm")
    change(with_code(tmp_path / "llm", trace) / "config.json", auto_map=EVIL_TYPE["auto_map"])
    model, _ = load_llm(str(tmp_path / "llm"))
    assert type(model).__name__ == "LlamaForCausalLM" and not trace.exists()


def clip_config(directory: Path) -> None:
    """open_clip: a text tower of transformers."""
    text = {"hf_model_name": str(directory), "hf_tokenizer_name": "tiny", "hf_pooler_type": "mean_pooler"}
    found = json.loads((directory / "open_clip_config.json").read_text())
    found["model_cfg"]["text_cfg"] = text
    change(directory / "open_clip_config.json", **found)
    change(directory / "config.json", **EVIL_TYPE)


def clip_tokenizer(directory: Path) -> None:
    tokenizer(directory)


def clip_tokenizer_that_says_yes(directory: Path) -> None:
    """The config itself hands `trust_remote_code` to the tokenizer: nobody would even be asked."""
    tokenizer(directory)
    found = json.loads((directory / "open_clip_config.json").read_text())
    found["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    change(directory / "open_clip_config.json", **found)


def modules(directory: Path) -> None:
    rows = json.loads((directory / "modules.json").read_text())
    rows[1]["type"] = "evil.P"
    (directory / "modules.json").write_text(json.dumps(rows))


def modules_in_a_router(directory: Path) -> None:
    rows = json.loads((directory / "modules.json").read_text())
    rows[1] |= {"type": "sentence_transformers.models.Router", "path": "1_Router"}
    (directory / "modules.json").write_text(json.dumps(rows))
    (directory / "1_Router").mkdir()
    (directory / "1_Router" / "router_config.json").write_text(
        json.dumps({"types": {"query_0_P": "evil.P"}, "structure": {"query": ["query_0_P"]}, "parameters": {}})
    )


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("open_clip", clip_config),
        ("open_clip", clip_tokenizer),
        ("open_clip", clip_tokenizer_that_says_yes),
        ("transformers", config),
        ("sentence_transformers", config),
        ("sentence_transformers", modules),
        ("sentence_transformers", modules_in_a_router),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_no_encoder_runs_its_code(
    kind: str,
    spoil: Callable[[Path], None],
    tmp_path: Path,
    trace: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = write_tiny_clip if kind == "open_clip" else write_tiny_sentence_model
    write(tmp_path / "model")
    spoil(with_code(tmp_path / "model", trace))
    monkeypatch.syspath_prepend(tmp_path / "model")  # as if its modules were installed
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    with pytest.raises(RetrievalError, match=f"{SAID}.*Given: .*model.*Allowed: .*encoder.name=MODEL"):
        load_encoder(EncoderSpec(kind, f"local-dir:{tmp_path / 'model'}"), device="cpu")
    assert not asked and not trace.exists()


def test_the_commands_say_it_in_one_line(
    good: Path,
    tmp_path: Path,
    trace: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good / "vlm", "vlm")
    config(with_code(tmp_path / "vlm", trace))
    Path("captions.txt").write_text("a dog\n")
    Path("q.jsonl").write_text(json.dumps({"id": 1, "prompt": "What?"}))
    for main, arguments in [
        (export.main, ["model.vlm=vlm"]),
        (evaluate.main, ["models={a: vlm}", "evaluation.root=.", "+evaluation.metrics.m={file: q.jsonl}"]),
        (
            build_index.main,
            ["encoder.kind=transformers", "encoder.name=local-dir:vlm", "captions=captions.txt", "out=i"],
        ),
    ]:
        monkeypatch.setattr(sys, "argv", ["command", *arguments, "hydra.run.dir=."])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert end.value.code == 1 and SAID in said and "Traceback" not in said, said
    assert not asked and not trace.exists()


def test_the_question_comes_back_for_others(good: Path, tmp_path: Path, trace: Path, asked: list[str]) -> None:
    """What other code of the process loads is left as it was."""
    shutil.copytree(good / "llm", tmp_path / "llm")
    config(with_code(tmp_path / "llm", trace))
    with pytest.raises(ModelCodeError), own_code_refused():
        AutoConfig.from_pretrained(tmp_path / "llm")
    assert not asked
    AutoConfig.from_pretrained(tmp_path / "llm")
    assert len(asked) == 1 and trace.exists()


def test_every_load_passes_it() -> None:
    """Of what loads by name, in the source; the one other way in is a config, which `without_own_code` guards."""
    missing = []
    for path in (file for folder in ("tga", "retrieval_index", "tools") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name not in ("from_pretrained", "from_config", "SentenceTransformer", "pipeline"):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("trust_remote_code") != "False":
                missing.append(f"{path.name}:{node.lineno}")
    assert missing == []


def test_no_checkpoint_says_otherwise() -> None:
    with pytest.raises(TypeError):
        BaseModel(vlm="a", trust_remote_code=True)  # type: ignore[call-arg]
