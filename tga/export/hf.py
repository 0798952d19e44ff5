"""A model and its processor as a Hugging Face directory that plain transformers loads, without `tga`.

What is written is the complete model (language model, vision tower, trained projector), its generation settings, its
processor with chat template, and a model card. Nothing in the directory needs this package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from tga.errors import UserError
from tga.export.card import ModelCard, render_card
from tga.export.chat import exported_chat_template
from tga.export.layout import spell_for_all
from tga.export.processor import puts_picture_first, save_processor
from tga.export.verify import verify_directory
from tga.files import atomic_directory, reason_to_keep
from tga.vlm.pictures import Pictures

KIND = "export of tga"  # in the mark of the directory, beside the list of its files
MAX_SHARD_SIZE = "5GB"
OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def export_hf(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    out_dir: str | Path,
    card: ModelCard,
    *,
    trained_with: str | None = None,
    verify: bool = True,
) -> Path:
    """Write `model` and `processor` to `out_dir` (replaced as a whole, and only once it is complete) and return it.

    The weights keep the dtype they have. Names on disk are those that older versions read too (`tga.export.layout`).

    Args:
        trained_with: the template of the training, which becomes the chat template (`tga.export.chat`).
        verify: load the directory again in a fresh process before it takes its name (`tga.export.verify`).

    Raises:
        UserError: `out_dir` exists and is no earlier export, or holds more than that; or what was written does not load
            as `model`.
    """
    target = Path(out_dir).absolute()
    refuse_foreign_directory(target)
    chat_template = exported_chat_template(processor, trained_with)
    prompt = None if chat_template and not puts_picture_first(processor) else _prompt(processor)
    usage = USAGE + (WITH_CHAT if prompt is None else WITH_PROMPT.replace("PROMPT", json.dumps(prompt)))
    usage += NEEDS.format(version=transformers.__version__, checked=CHECKED if verify else NOT_CHECKED)
    if lacks_chat_template(processor, trained_with):
        usage += f"\n{NO_CHAT_TEMPLATE}\n"
    with atomic_directory(target, KIND) as directory:
        with _consistent_generation(model):
            model.save_pretrained(directory, max_shard_size=MAX_SHARD_SIZE)
        saved = save_processor(processor, chat_template, directory)
        _forget_local_names(directory / "config.json")
        spell_for_all(directory)
        if verify:
            verify_directory(directory, model, saved, prompt)
        (directory / "README.md").write_text(render_card(card, usage), encoding="utf-8")
    return target


def lacks_chat_template(processor: Any, trained_with: str | None) -> bool:
    """Whether an export has no chat template and needs one (InstructBLIP's processor does without)."""
    return not puts_picture_first(processor) and not exported_chat_template(processor, trained_with)


def _forget_local_names(file: Path) -> None:
    """Take the directories of this machine out of a config.json: `_name_or_path` of the parts; hub ids stay."""

    def without(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {
            key: without(value)
            for key, value in node.items()
            if not (key == "_name_or_path" and (Path(str(value)).is_absolute() or Path(str(value)).is_dir()))
        }

    config = without(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def refuse_foreign_directory(target: Path) -> None:
    """Raise a UserError where an export would replace something that is not an export.

    A directory may be replaced when it is empty or an earlier export, with the mark of one, and nothing in it was added
    or changed since: a model that somebody downloaded has a config.json and a card too.
    """
    reason = reason_to_keep(target, KIND)
    if reason is not None:
        raise UserError(
            "The output exists and is no earlier export, so it is not replaced",
            given=f"{target}: {reason}",
            allowed="a new path, an empty directory, or the directory of an earlier export as it was written",
            remedy="output=ANOTHER/PATH, or move what is there",
        )


def _prompt(processor: Any) -> str:
    """What stands beside a picture where there is no chat template."""
    return "Describe the image." if puts_picture_first(processor) else Pictures(processor).text + "\n"


@contextmanager
def _consistent_generation(model: PreTrainedModel) -> Iterator[None]:
    """Take settings of sampling out of greedy generation settings for a block.

    Vicuna's have a temperature and no `do_sample`. They change nothing, but transformers 5.0 refuses to save them.
    """
    before = model.generation_config
    if before is not None and not before.do_sample:
        model.generation_config = copy.deepcopy(before)
        plain = GenerationConfig()
        for name in OF_SAMPLING:
            setattr(model.generation_config, name, getattr(plain, name, None))
    try:
        yield
    finally:
        model.generation_config = before


NEEDS = """
Needs transformers 5.0 or newer; written by {version}. {checked}
"""
CHECKED = """Loaded again from disk in a fresh process before it took its name: no weight missing or unexpected, same
token ids, same logits."""
NOT_CHECKED = "Not loaded again after it was written."
NO_CHAT_TEMPLATE = (
    "There is no chat template: the tokenizer of the language model has none, and the training was on captions alone "
    "(data.template=plain). Name one to export the model with it (tga-export chat_template=vicuna_v1), or to ask in it "
    "(tga-evaluate evaluation.chat_template=vicuna_v1)."
)
USAGE = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("PATH")
processor = AutoProcessor.from_pretrained("PATH")
"""
WITH_CHAT = """question = {"type": "text", "text": "Describe the image."}
messages = [{"role": "user", "content": [{"type": "image", "url": "PICTURE"}, question]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```
"""
WITH_PROMPT = """from PIL import Image

inputs = processor(images=Image.open("PICTURE"), text=PROMPT, return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```
"""
