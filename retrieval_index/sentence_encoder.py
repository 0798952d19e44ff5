"""Sentence embeddings through sentence-transformers: captions only.

The neighbours of a picture are then those of its own caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval_index.encoders import LOCAL_DIR, golden_embedding
from retrieval_index.errors import RetrievalError

BLOCK = 16_384
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
        try:
            self._model = SentenceTransformer(name.removeprefix(LOCAL_DIR), device=device).to(DTYPES[precision]).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise RetrievalError(
                f"The sentence-transformers encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
                given=name,
                remedy="encoder.name=MODEL or encoder.name=local-dir:PATH",
            ) from error
        self.width = len(golden_embedding(self))

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of captions, `[texts, width]` float32; the library sorts each block by length itself."""
        blocks = []
        for start in range(0, len(texts), BLOCK):
            block = list(texts[start : start + BLOCK])
            vectors = self._model.encode(
                block,
                batch_size=batch_size,
                convert_to_tensor=True,
                normalize_embeddings=False,
                show_progress_bar=False,
            )
            blocks.append(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy())
            if report is not None:
                report(start + len(block))
        return np.concatenate(blocks) if blocks else np.empty((0, self.width), dtype=np.float32)

    def encode_images(
        self, paths: Sequence[Path | BytesIO], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Refused: there is no image tower."""
        raise RetrievalError(
            "This encoder reads text only",
            given="pictures for a sentence-transformers model",
            remedy="encoder.kind=open_clip with a model that has an image tower",
        )
