"""CLIP and SigLIP models in the Hugging Face layout, through transformers.

CLIP's text tower is causal and pooled at the first end token: captions are sorted by length and padded to the longest
of their batch only, which changes nothing. SigLIP attends to its padding and gets the whole context, in lower case,
as it was trained. Pictures are resized by Pillow in every version (the faster processors give other pixels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from retrieval_index.batching import Picture, encode_blocks, encode_pictures
from retrieval_index.encoders import LOCAL_DIR, unit_rows
from retrieval_index.errors import RetrievalError
from retrieval_index.model_code import ALLOWED_MODELS, ModelCodeError, own_code_refused

FAMILIES = ("clip", "siglip", "siglip2")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TransformersEncoder:
    """Text and image towers of a CLIP or SigLIP model.

    Args:
        name: hub id, path or `local-dir:PATH`.
        pretrained: a revision of the hub (branch, tag or commit); None is its main branch.
        device: torch device.
        precision: fp32, fp16 or bf16.

    Raises:
        RetrievalError: a model that cannot be loaded, or of another family.
    """

    encodes_images = True

    def __init__(self, name: str, pretrained: str | None, *, device: str = "cpu", precision: str = "fp32") -> None:
        self._model, self._tokenizer, self._processor = _load(name.removeprefix(LOCAL_DIR), pretrained, precision)
        self._model = self._model.to(device).eval()
        self._device = torch.device(device)
        config = self._model.config
        self._whole_context = config.model_type != "clip"
        self._context = int(config.text_config.max_position_embeddings)
        self.width = int(config.projection_dim if config.model_type == "clip" else config.text_config.projection_size)
        self.truncated = 0
        self.revision: str | None = getattr(config, "_commit_hash", None)
        self.preprocessing = {
            "tokenizer": type(self._tokenizer).__name__,
            "context": self._context,
            "trims": not self._whole_context,
            "picture": f"{type(self._processor).__name__} {self._processor.to_json_string()}",
        }

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of captions, `[texts, width]` float32, in the order given."""

        def tokenize(block: list[str]) -> list[list[int]]:
            spelled = [text.lower() for text in block] if self._whole_context else block
            ids = self._tokenizer(spelled, padding=False, truncation=False, verbose=False)["input_ids"]
            long = [row for row, tokens in enumerate(ids) if len(tokens) > self._context]
            if long:
                self.truncated += len(long)
                cut = self._tokenizer(
                    [spelled[row] for row in long], padding=False, truncation=True, max_length=self._context
                )
                for row, tokens in zip(long, cut["input_ids"], strict=True):
                    ids[row] = tokens
            return ids  # type: ignore[no-any-return]

        def lengths(ids: list[list[int]]) -> np.ndarray | None:
            return None if self._whole_context else np.array([len(tokens) for tokens in ids], dtype=np.int64)

        def encode(ids: list[list[int]], rows: np.ndarray) -> np.ndarray:
            batch = self._tokenizer.pad(
                {"input_ids": [ids[row] for row in rows.tolist()]},
                padding="max_length" if self._whole_context else "longest",
                max_length=self._context,
                padding_side=self._tokenizer.padding_side if self._whole_context else "right",
                return_attention_mask=False,
                return_tensors="pt",
            )
            with torch.inference_mode():
                return unit_rows(_pooled(self._model.get_text_features(batch["input_ids"].to(self._device))))

        return encode_blocks(texts, batch_size, self.width, tokenize, lengths, encode, report)

    def encode_images(
        self, pictures: Sequence[Picture], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of pictures, `[pictures, width]` float32, with the model's own preprocessing.

        Raises:
            RetrievalError: a picture that is missing or cannot be decoded.
        """

        def preprocess(picture: Image.Image) -> dict[str, torch.Tensor]:
            return dict(self._processor(images=picture, return_tensors="pt"))

        def encode(batch: list[dict[str, torch.Tensor]]) -> np.ndarray:
            inputs = {key: torch.cat([picture[key] for picture in batch]).to(self._device) for key in batch[0]}
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            with torch.inference_mode():
                return unit_rows(_pooled(self._model.get_image_features(**inputs)))

        return encode_pictures(pictures, batch_size, self.width, preprocess, encode, report)


def _pooled(output: Any) -> torch.Tensor:
    """The features `[rows, width]`: transformers 5 returns them as `pooler_output`, older versions bare."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _load(name: str, revision: str | None, precision: str) -> tuple[Any, Any, Any]:
    named: dict[str, Any] = {"revision": revision}
    try:
        with own_code_refused():
            family = AutoConfig.from_pretrained(name, trust_remote_code=False, **named).model_type
            if family not in FAMILIES:
                raise RetrievalError(
                    "This transformers model has no text and image tower that is known here",
                    given=f"{name} of the family {family}",
                    allowed=", ".join(FAMILIES),
                    remedy="encoder.name=MODEL of one of them, or encoder.kind=open_clip",
                )
            return (
                AutoModel.from_pretrained(name, trust_remote_code=False, dtype=DTYPES[precision], **named),
                AutoTokenizer.from_pretrained(name, trust_remote_code=False, **named),
                AutoImageProcessor.from_pretrained(name, trust_remote_code=False, backend="pil", **named),
            )
    except ModelCodeError as error:
        raise RetrievalError(str(error), given=name, allowed=ALLOWED_MODELS, remedy="encoder.name=MODEL") from error
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise RetrievalError(
            f"The transformers encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
            given=name if revision is None else f"{name} at {revision}",
            remedy="encoder.name=MODEL or encoder.name=local-dir:PATH",
        ) from error
