"""Sentence embeddings through sentence-transformers: captions only.

The neighbours of a picture are then those of its own caption. The library sorts by characters and pads each batch to
its longest text; here captions are sorted by tokens, which pads less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval_index.batching import Picture, encode_blocks
from retrieval_index.encoders import GOLDEN_SENTENCE, LOCAL_DIR, unit_rows
from retrieval_index.errors import RetrievalError
from retrieval_index.model_code import ALLOWED_MODELS, ModelCodeError, own_code_refused

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        name: hub id, path or `local-dir:PATH`.
        pretrained: must be None; the name says which weights.
        device: torch device.
        precision: fp32, fp16 or bf16.

    Raises:
        RetrievalError: a model that cannot be loaded, or a pretrained tag.
    """

    encodes_images = False

    def __init__(self, name: str, pretrained: str | None, *, device: str = "cpu", precision: str = "fp32") -> None:
        if pretrained is not None:
            raise RetrievalError(
                "A sentence-transformers model takes no pretrained tag",
                given=pretrained,
                remedy="encoder.pretrained=null",
            )
        place = name.removeprefix(LOCAL_DIR)
        try:
            with own_code_refused():
                _check_modules(Path(place))
                model = SentenceTransformer(place, device=device, trust_remote_code=False)
            self._model = model.to(DTYPES[precision]).eval()
        except ModelCodeError as error:
            raise RetrievalError(str(error), given=name, allowed=ALLOWED_MODELS, remedy="encoder.name=MODEL") from error
        except (RuntimeError, ValueError, OSError) as error:
            raise RetrievalError(
                f"The sentence-transformers encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
                given=name,
                remedy="encoder.name=MODEL or encoder.name=local-dir:PATH",
            ) from error
        self.truncated = 0
        inner = getattr(self._model, "transformers_model", None)
        self.revision: str | None = getattr(getattr(inner, "config", None), "_commit_hash", None)
        self.preprocessing = {
            "tokenizer": type(self._model.tokenizer).__name__,
            "context": self._model.max_seq_length,
            "prompt": self._model.prompts.get(self._model.default_prompt_name or "", ""),
        }
        self.width = self._encode([GOLDEN_SENTENCE]).shape[1]

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of captions, `[texts, width]` float32, in the order given."""

        def prepare(block: list[str]) -> tuple[list[str], np.ndarray]:
            ids = self._model.tokenizer(block, padding=False, truncation=False, verbose=False)["input_ids"]
            lengths = np.array([len(tokens) for tokens in ids], dtype=np.int64)
            if self._model.max_seq_length is not None:
                self.truncated += int((lengths > self._model.max_seq_length).sum())
            return block, lengths

        def encode(prepared: tuple[list[str], np.ndarray], rows: np.ndarray) -> np.ndarray:
            return self._encode([prepared[0][row] for row in rows.tolist()])

        return encode_blocks(texts, batch_size, self.width, prepare, lambda prepared: prepared[1], encode, report)

    def encode_images(
        self, pictures: Sequence[Picture], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Refused: there is no image tower."""
        raise RetrievalError(
            "This encoder reads text only",
            given="pictures for a sentence-transformers model",
            remedy="encoder.kind=open_clip with a model that has an image tower",
        )

    def _encode(self, texts: list[str]) -> np.ndarray:
        """One batch, by the library: its prompt, pooling and further modules are part of the model."""
        vectors = self._model.encode(
            texts,
            batch_size=len(texts),
            convert_to_tensor=True,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        return unit_rows(vectors)


def _check_modules(directory: Path) -> None:
    """Raise ModelCodeError where a directory's modules are classes of others: before 6.0 the library imports them.

    Raises:
        ModelCodeError: see above.
        ValueError: a list of modules that is none.
    """
    types: list[str] = []
    for file in directory.rglob("modules.json"):
        types += [str(module["type"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    for file in directory.rglob("router_config.json"):
        types += map(str, json.loads(file.read_text(encoding="utf-8")).get("types", {}).values())
    if not all(name.startswith("sentence_transformers.") for name in types):
        raise ModelCodeError
