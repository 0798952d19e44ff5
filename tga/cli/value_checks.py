"""Which kind each key of the configs is of, for all commands; what is of another is said before anything is done.

A key has one meaning wherever it stands, so the table is one. `*` stands for any name. Ranges stand here where nothing
that takes the value has one of its own; which settings go together is the business of `tga.cli.setting_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tga.cli.value_kinds import (
    ATTENTION,
    DEVICE,
    DIRECTORY,
    FLAG,
    LAYERS,
    MAPPING,
    NULL,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    each,
    number,
    whole,
    word,
)
from tga.errors import UserError

SEED = whole(0, 2**32 - 1)
NUMBER = number(-math.inf)
DTYPE = word("auto", "float32", "bfloat16", "float16")

KINDS: dict[str, Kind] = {
    "run_dir": DIRECTORY, "report_dir": DIRECTORY, "prepare.root": DIRECTORY, "seed": SEED,
    "prepare.train_pictures": whole(1), "prepare.captions": whole(1),
    "safety_layers": LAYERS, "device": DEVICE, "attn_implementation": ATTENTION, "dtype": DTYPE,
    "models": MAPPING | NULL, "models.*": TEXT, "metrics": TEXTS | NULL,
    "workers": whole(0), "max_pixels": whole(1),
    # tga-compare
    "seeds": each(SEED), "methods": TEXTS, "columns": TEXTS, "jobs": whole(1), "fresh": FLAG,
    "variants": MAPPING, "variants.*.overrides": TEXTS, "steered": MAPPING, "steered.*.overrides": TEXTS,
    # the groups of tga-train
    "model.seed": SEED, "model.train": TEXTS, "model.vision_feature_layer": WHOLE,
    "model.lora": MAPPING | NULL, "model.lora.rank": WHOLE,
    "model.lora.alpha": NUMBER, "model.lora.dropout": NUMBER,
    "model.lora.targets": TEXTS, "model.calibration": MAPPING | NULL, "model.calibration.eps": number(0, above=True),
    "model.calibration.output_std_ratio": number(0, above=True), "model.calibration.images": whole(1),
    "data.max_length": whole(1), "data.limit": whole(1) | NULL, "data.max_bad_fraction": number(0, 1),
    "data.swapped_words": NUMBER, "data.neighbours_k": whole(1), "data.neighbours_used": whole(1),
    "alignment.layers": LAYERS, "alignment.pair_weight": number(0), "alignment.rank_weight": number(0),
    "alignment.warmup": number(0, 1), "alignment.temperature": number(0, above=True), "alignment.centred": FLAG,
    "alignment.retrieved_gradient": FLAG, "alignment.sif_a": number(1e-9),
    "alignment.regap.ratio": number(0), "alignment.regap.warmup": number(0, 1), "alignment.regap.decay": number(0, 1),
    "alignment.regap.weight": number(0) | NULL, "alignment.regap.squared": FLAG, "alignment.regap.force": FLAG,
    "training.epochs": WHOLE, "training.max_steps": WHOLE | NULL, "training.batch_size": WHOLE | NULL,
    "training.accumulate_batches": WHOLE | NULL, "training.global_batch_size": whole(1) | NULL,
    "training.processes": whole(1) | NULL, "training.learning_rate": NUMBER,
    "training.projector_learning_rate": NUMBER | NULL, "training.weight_decay": number(0),
    "training.betas": each(number(0, 1, below=True), length=2), "training.warmup_ratio": NUMBER,
    "training.min_lr_ratio": number(0, 1), "training.gradient_clip_norm": number(0, above=True) | NULL,
    "training.lm_weight": number(0), "training.gradient_checkpointing": FLAG, "training.liger_kernel": FLAG,
    "training.num_workers": whole(0), "training.grouping": word("none", "length", "modality", "modality_length"),
    "training.seed": SEED, "training.centre_captions": WHOLE, "training.save_every": whole(0),
    "training.keep_checkpoints": WHOLE, "training.log_every": WHOLE,
    "training.gradient_norm_every": whole(0), "training.loggers": TEXTS,
    # export
    "verify": FLAG, "license": TEXT | NULL, "license_name": TEXT | NULL, "license_link": TEXT | NULL, "datasets": TEXTS,
    # evaluation, steering, localisation
    "evaluation.batch_size": whole(1), "evaluation.max_new_tokens": whole(1), "evaluation.limit": whole(1) | NULL,
    "evaluation.seed": SEED, "evaluation.metrics": MAPPING, "evaluation.metrics.*": MAPPING,
    "evaluation.metrics.*.layers": LAYERS, "evaluation.metrics.*.by_group": FLAG, "answers": TEXT | NULL,
    "evaluation.judge_model": MAPPING, "evaluation.judge_model.path": TEXT | NULL,
    "evaluation.judge_model.form": word("conversation", "question", "text"),
    "evaluation.judge_model.template": TEXT | NULL, "evaluation.judge_model.unsafe": TEXT | NULL,
    "evaluation.judge_model.safe": TEXT | NULL, "evaluation.judge_model.batch_size": whole(1),
    "steering.anchors_limit": whole(1) | NULL, "steering.picture_size": whole(1) | NULL, "steering.seed": SEED,
    "steering.layers": LAYERS, "steering.alpha": number(0) | NULL, "steering.alphas": each(number(0)) | NULL,
    "steering.choose.utility": TEXTS, "steering.choose.over_refusal_limit": number(0, 1),
    "steering.choose.utility_tolerance": number(0, 1),
    "localization.figures": each(whole(0)), "localization.openings": TEXTS, "localization.ordinary_openings": TEXTS,
    "localization.contrast_share": NUMBER, "localization.window": whole(1), "localization.stride": whole(1),
    "localization.added_scale": NUMBER,
}  # fmt: skip


def value_problems(values: Mapping[str, Any]) -> list[UserError]:
    """Every value of a config, as plain dicts, lists and scalars, that is of another kind than its key's."""
    return [
        UserError(f"{key} is not what it must be", given=value, allowed=kind.allowed, remedy=f"{key}=VALUE")
        for pattern, kind in KINDS.items()
        for key, value in _found(values, pattern.split("."))
        if not kind.holds(value)
    ]


def refuse(problems: Sequence[UserError]) -> None:
    """Raise the one problem, or all of them in one message; do nothing where there is none.

    Raises:
        UserError: there are problems.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"  {at}. {problem}" for at, problem in enumerate(problems, start=1)]
        raise UserError(
            f"{len(problems)} problems were found before anything was loaded:\n" + "\n".join(lines),
            remedy="mend them all; tga-doctor with the same arguments looks again",
        )


def _found(node: Any, parts: Sequence[str], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that a pattern means, with its value; none where a parent is missing or no mapping."""
    if not isinstance(node, Mapping):
        return
    head, *rest = parts
    for name in list(node) if head == "*" else [head]:
        if name in node:
            key = f"{before}{name}"
            if rest:
                yield from _found(node[name], rest, f"{key}.")
            else:
                yield key, node[name]
