"""Which frozen parts a run stands on: named in every checkpoint, loaded again from there, never copied into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tga.errors import UserError
from tga.vlm.assemble import assemble_llava, load_vlm
from tga.vlm.families import family_of
from tga.vlm.outline import check_llm, check_vision_tower, outline_llava, outline_vlm
from tga.vlm.pretrained import stored_dtype
from tga.vlm.projector_files import fitting_projector, import_projector, projector_files


@dataclass(frozen=True)
class BaseModel:
    """A VLM by name: either a complete one (`vlm`) or an LLM and a vision tower to be joined by a fresh projector.

    Each name is a local directory or a hub id. `seed` decides the fresh projector, unless `projector` names a trained
    one to start from (`tga.vlm.projector_files`); the `vision_feature` fields hold for parts only, a complete VLM
    brings its own.

    Raises:
        UserError: neither or both ways of naming the model are used.
    """

    llm: str | None = None
    vision_tower: str | None = None
    vlm: str | None = None
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "default"
    seed: int = 0
    projector: str | None = None

    def __post_init__(self) -> None:
        parts = self.llm is not None and self.vision_tower is not None
        if parts == (self.vlm is not None) or (self.llm is None) != (self.vision_tower is None):
            given = f"llm={self.llm}, vision_tower={self.vision_tower}, vlm={self.vlm}"
            allowed = "llm and vision_tower, or vlm alone"
            raise UserError(
                "The model is not named in one way", given=given, allowed=allowed, remedy="model.llm=PATH ..."
            )

    def load(self, *, dtype: torch.dtype | None, attn_implementation: str) -> tuple[Any, Any]:
        """The model and its processor; dtype None takes the one in which the language model is stored."""
        model, processor = self._load(dtype or self.stored_dtype(), attn_implementation)
        if self.projector is not None:
            import_projector(model, family_of(model), self.projector)
        return model, processor

    def _load(self, dtype: torch.dtype, attn_implementation: str) -> tuple[Any, Any]:
        if self.vlm is not None:
            return load_vlm(self.vlm, dtype, attn_implementation)
        assert self.llm is not None and self.vision_tower is not None
        return assemble_llava(
            self.llm,
            self.vision_tower,
            vision_feature_layer=self.vision_feature_layer,
            vision_feature_select_strategy=self.vision_feature_select_strategy,
            dtype=dtype,
            attn_implementation=attn_implementation,
            seed=self.seed,
        )

    def outline(self, *, dtype: torch.dtype | None) -> tuple[Any, Any]:
        """The model without its weights, on the meta device, and its processor; what does not fit together is refused.

        Raises:
            UserError: a part that does not exist, lacks files, or a projector of other shapes.
        """
        dtype = dtype or self.stored_dtype()
        if self.vlm is not None:
            model, processor = outline_vlm(self.vlm, dtype=dtype)
        else:
            assert self.llm is not None and self.vision_tower is not None
            model, processor = outline_llava(
                self.llm,
                self.vision_tower,
                vision_feature_layer=self.vision_feature_layer,
                vision_feature_select_strategy=self.vision_feature_select_strategy,
                dtype=dtype,
            )
        if self.projector is not None:
            fitting_projector(model, family_of(model), self.projector)
        return model, processor

    def part_checks(self) -> list[Callable[[], object]]:
        """Checks of the parts one by one: an outline stops at the first that is wrong, and there may be more."""
        checks: list[Callable[[], object]] = []
        if self.vlm is None:
            assert self.llm is not None and self.vision_tower is not None
            checks += [partial(check_llm, self.llm), partial(check_vision_tower, self.vision_tower)]
        if self.projector is not None:
            checks.append(partial(projector_files, Path(self.projector)))
        return checks

    def stored_dtype(self) -> torch.dtype:
        """The dtype in which the language model is stored; float32 where its config does not say."""
        if self.vlm is not None:
            return stored_dtype(self.vlm, remedy="model.vlm=PATH")
        assert self.llm is not None
        return stored_dtype(self.llm, remedy="model.llm=PATH")

    def located(self) -> dict[str, Any]:
        """The fields as a plain dict; names that are local files or directories become absolute paths."""
        fields = asdict(self)
        for key in ("llm", "vision_tower", "vlm", "projector"):
            if fields[key] is not None and Path(fields[key]).exists():
                fields[key] = str(Path(fields[key]).absolute())
        return fields
