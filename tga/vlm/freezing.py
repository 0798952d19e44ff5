"""Which parts of the model train, and a table that says so."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from tga.errors import UserError
from tga.vlm.families import Family, component

PARTS = ("vision_tower", "projector", "language_model")


def freeze(model: nn.Module, family: Family, train: Collection[str]) -> None:
    """Let exactly the parts in `train` train; the others get no gradient and stay in eval mode.

    The language model includes its head. A head tied to the embeddings follows the language model. A projector that
    lies within the vision tower is no part of it.

    Args:
        train: names out of "projector", "language_model", "vision_tower".

    Raises:
        UserError: an unknown part, or none at all.
    """
    check_parts(train)
    model.eval()
    model.requires_grad_(False)
    for part in PARTS:
        if part in train:
            for module in _modules(model, family, part):
                module.requires_grad_(True)
                module.train()
    if "projector" not in train:
        component(model, family.projector).requires_grad_(False).eval()


def check_parts(train: Collection[str]) -> None:
    """Raise UserError for an unknown part, or none at all."""
    unknown = sorted(set(train) - set(PARTS))
    if unknown or not train:
        raise UserError(
            "Unknown part to train" if unknown else "Nothing to train",
            given=unknown or list(train),
            allowed=", ".join(PARTS),
            remedy="model.train=[projector] for stage 1, model.train=[projector,language_model] for stage 2",
        )


def parameter_table(model: nn.Module, family: Family) -> list[tuple[str, int, int]]:
    """Rows (part, trainable parameters, frozen parameters); a shared parameter counts once, first for the projector.

    The last row, "other", stands only where the model has parameters outside the three parts.
    """
    seen: set[int] = set()
    counted = {part: {True: 0, False: 0} for part in PARTS}
    for part in ("projector", "vision_tower", "language_model"):
        for module in _modules(model, family, part):
            _count(module, seen, counted[part])
    rows = [(part, counts[True], counts[False]) for part, counts in counted.items()]
    rest = {True: 0, False: 0}
    _count(model, seen, rest)
    if sum(rest.values()):
        rows.append(("other", rest[True], rest[False]))
    return rows


def _count(module: nn.Module, seen: set[int], counts: dict[bool, int]) -> None:
    for parameter in module.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            counts[parameter.requires_grad] += parameter.numel()


def _modules(model: nn.Module, family: Family, part: str) -> list[nn.Module]:
    paths = {
        "vision_tower": [family.vision_tower],
        "projector": [family.projector],
        "language_model": [family.language_model, family.lm_head],
    }
    return [component(model, path) for path in paths[part]]
