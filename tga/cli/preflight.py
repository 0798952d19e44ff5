"""What a run of tga-train would stumble over, found all at once before anything large is loaded.

Every check that can be made is made, whatever the others find: options, paths, data, layers, one whole prompt, memory
against the device, room on the disks. The model is an outline without weights (`tga.vlm.outline`). `tga-doctor` prints
the same checks with what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from retrieval_index.build import check_out
from retrieval_index.errors import RetrievalError
from retrieval_index.faiss_env import check_faiss
from tga.alignment.layers import measured_layers
from tga.alignment.objective import pooled_layers
from tga.alignment.token_weights import SIF
from tga.cli.caption_index import EncoderChoice, index_settings
from tga.cli.checks import Finding
from tga.cli.data import read_samples
from tga.cli.preflight_room import disks, memory_of_a_step
from tga.cli.setting_checks import setting_problems
from tga.cli.train_config import (
    BASE_FIELDS,
    DTYPES,
    build_objectives,
    lora_settings,
    train_settings,
    with_located_layers,
)
from tga.cli.value_checks import refuse, value_problems
from tga.data.collate import RETRIEVED, Collator
from tga.data.sample import Sample
from tga.errors import UserError
from tga.evaluation.metrics import metrics_from_config, read_metric_questions, refuse_model_judges
from tga.training.base_model import BaseModel
from tga.training.centre import check_centre
from tga.training.distributed import expected_processes, is_launched, launched
from tga.training.prepare import prepare_model
from tga.training.settings import TrainSettings
from tga.training.stage import refuse_wrong_stage
from tga.training.stored_features import check_stored_features, require_memory
from tga.training.token_weights import require_captions
from tga.vlm.chat_templates import TEMPLATES
from tga.vlm.families import family_of, num_layers
from tga.vlm.freezing import freeze, parameter_table
from tga.vlm.pictures import Pictures
from tga.vlm.templates import render

T = TypeVar("T")


@dataclass
class Checked:
    """What the checks found.

    Attributes:
        problems: what stops the run; warnings: what may; facts: name and value of what was found.
        samples: the data, None where it cannot be read.
        strange_values: a value of the wrong kind is among the problems; what stumbles over it need not be told again.
    """

    problems: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    samples: Sequence[Sample] | None = None
    strange_values: bool = False

    def ask(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """The check's answer; its mistake is kept, and None returned."""
        with self.asking():
            return check(*arguments)
        return None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Keep the mistake that ends a block, once."""
        try:
            yield
        except Exception as error:
            if (found := _user_error(error)) is None:
                if self.strange_values and isinstance(error, (TypeError, ValueError)):
                    return
                raise
            if str(found) not in map(str, self.problems):
                self.problems.append(found)

    def take(self, finding: Finding) -> None:
        """Keep what was found of one thing."""
        self.facts.append((finding.name, finding.found))
        self.warnings.extend([finding.warning] if finding.warning else [])
        self.problems.extend([finding.problem] if finding.problem else [])


def require_ready(values: Mapping[str, Any], say: Callable[[str], object]) -> Sequence[Sample]:
    """The samples of a run that can start; warnings are said.

    Raises:
        UserError: it cannot: the one problem, or all of them in one message.
    """
    checked = preflight(values)
    for warning in checked.warnings:
        say(f"Warning: {warning}")
    refuse(checked.problems)
    assert checked.samples is not None
    return checked.samples


def require_settings(values: Mapping[str, Any]) -> None:
    """Refuse what the settings alone show to be wrong, before the files that they name are made or read.

    Raises:
        UserError: the one problem, or all of them in one message.
    """
    refuse(setting_problems(values))


def preflight(values: Mapping[str, Any]) -> Checked:
    """All checks of a config of tga-train, as plain values."""
    checked = Checked(setting_problems(values), strange_values=bool(value_problems(values)))
    settings = checked.ask(train_settings, values["training"])
    alignment = checked.ask(with_located_layers, values["alignment"])
    _check_files(values, checked)
    checked.samples = checked.ask(read_samples, values["data"])
    if checked.samples is not None:
        pictured = sum(bool(sample.images) for sample in checked.samples)
        checked.facts.append(("samples", f"{len(checked.samples):,}, {pictured:,} with a picture"))
    with checked.asking():
        _check_model(values, settings, alignment, checked)
    return checked


def _check_files(values: Mapping[str, Any], checked: Checked) -> None:
    """The files beside the data set: corpus, neighbours, questions."""
    data, evaluation = values["data"], values["evaluation"]
    captions = data["captions"] if isinstance(data["captions"], list) else [data["captions"]]
    if values["alignment"]["retrieved"] != "none":
        named = [("data.captions", path) for path in captions if path is not None]
        if data["captions"] is None and data["neighbours"] is not None:
            named.append(("data.neighbours", data["neighbours"]))
        for key, path in named:
            if not Path(path).exists():
                remedy = f"{key}=PATH, or alignment.retrieved=none"
                checked.problems.append(UserError("A file does not exist", given=f"{key}={path}", remedy=remedy))
        if data["captions"] is not None:
            checked.ask(_check_index, values)
    if evaluation["metrics"] and evaluation["root"] is not None:
        with checked.asking():
            metrics = metrics_from_config(evaluation["root"], evaluation["metrics"])
            refuse_model_judges(metrics)
            read_metric_questions(metrics, evaluation["limit"])


def _check_index(values: Mapping[str, Any]) -> None:
    """What the caption index is made with, and the place where it will stand."""
    EncoderChoice(**values["encoder"]).spec.check()
    index_settings(values["index"])
    if values["data"]["index_dir"] is not None:
        check_out(Path(values["data"]["index_dir"]), "data.index_dir")
    check_faiss()


def _check_model(
    values: Mapping[str, Any], settings: TrainSettings | None, alignment: Mapping[str, Any] | None, checked: Checked
) -> None:
    """The model's outline, and what needs it: layers, what trains, a prompt, memory, disk."""
    base = BaseModel(**{name: values["model"][name] for name in BASE_FIELDS})
    dtype = DTYPES.get(values["model"]["dtype"], torch.float32)
    outline = checked.ask(lambda: base.outline(dtype=dtype))
    if outline is None:
        for check in base.part_checks():
            checked.ask(check)
        return
    model, processor = outline
    family = family_of(model)
    layers = num_layers(model, family)
    if values["evaluation"]["metrics"]:
        for metric in metrics_from_config(
            values["evaluation"]["root"] or ".", values["evaluation"]["metrics"]
        ).values():
            if metric.kind != "rate":
                checked.ask(measured_layers, metric.layers, layers)
    pictures = Pictures(processor, family)
    width = model.config.get_text_config().hidden_size
    checked.facts.append(("model", f"{family.name}, {layers} decoder layers of width {width}"))
    tokens = f"{pictures.count((336, 336))}" + (" of 336 x 336 pixels, more of larger ones" if pictures.vary else "")
    checked.facts.append(("image tokens of a picture", tokens))
    objectives = checked.ask(build_objectives, alignment, layers) if alignment is not None else None
    if objectives is not None and values["alignment"]["centred"]:
        checked.ask(check_centre, objectives)
    if checked.samples and pooled_layers(objectives or []) and values["alignment"].get("text_pooling") == SIF:
        checked.ask(require_captions, checked.samples)
    prompt = None
    if values["data"]["template"] in TEMPLATES and values["alignment"]["retrieved"] in RETRIEVED:
        prompt = checked.ask(_first_prompt, values, processor, pictures, checked.samples)
    lora = checked.ask(lora_settings, values["model"]["lora"])
    freeze(model, family, values["model"]["train"])
    if settings is None:
        return
    if values["model"]["vision_features"] == "stored":
        layer = getattr(model.config, "vision_feature_layer", None)
        with checked.asking():
            check_stored_features(family, layer, values["model"]["train"], settings.strategy)
            _check_room_for_features(model, pictures, values, checked.samples)
    prepare_model(model, family, settings, values["model"]["train"], lora)
    for part, trains, frozen in parameter_table(model, family):
        checked.facts.append((f"parameters of the {part.replace('_', ' ')}", f"{trains:,} train, {frozen:,} frozen"))
    kept = pooled_layers(objectives or [])
    checked.ask(refuse_wrong_stage, model, family, objectives or [])
    if prompt is not None:
        processes = expected_processes(values["training"]["processes"])
        checked.take(memory_of_a_step(model, family, settings, prompt, len(kept), processes))
    for finding in disks(values, settings, model, len(kept) * width, checked.samples):
        checked.take(finding)


def _check_room_for_features(
    model: Any, pictures: Pictures, values: Mapping[str, Any], samples: Sequence[Sample] | None
) -> None:
    """An upper bound: samples with a picture, where one picture may belong to several."""
    shown = sum(len(sample.images) for sample in samples or ())
    bytes_each = pictures.count() * model.config.vision_config.hidden_size * model.dtype.itemsize
    require_memory(shown, bytes_each, launched().local_size if is_launched() else values["training"]["processes"] or 1)


def _first_prompt(
    values: Mapping[str, Any], processor: Any, pictures: Pictures, samples: Sequence[Sample] | None
) -> tuple[int, int] | None:
    """Tokens and label tokens of the first sample with a picture, put together as in training."""
    data = values["data"]
    if not samples:  # the template can be tried without data
        turns = [("user", "What is it?"), ("assistant", "A dog.")]
        render(turns, template=data["template"], tokenizer=processor.tokenizer, image=True, image_token=pictures.token)
        return None
    sample = next((sample for sample in samples if sample.images), samples[0])
    collator = Collator(
        processor,
        data["template"],
        image_tokens=pictures.count(),
        retrieved=values["alignment"]["retrieved"],
        max_length=data["max_length"],
    )
    batch = collator([sample])
    return batch.input_ids.shape[1], int((batch.labels != -100).sum())


def _user_error(error: BaseException) -> UserError | None:
    """The user's mistake along the chain of causes; None for a defect of the program."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (UserError, RetrievalError)):
        cause = cause.__cause__
    if isinstance(cause, RetrievalError):
        return UserError(cause.problem, given=cause.given, allowed=cause.allowed, remedy=cause.remedy)
    return cause
