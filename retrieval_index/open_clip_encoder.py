"""CLIP models through open_clip: a built-in model with a pretrained tag or weight file, `hf-hub:` or `local-dir:`.

Captions are far shorter than the context of the text tower. Where the tower is causal and pooled at a token of the
caption itself, what stands behind that token cannot change the result, so a batch is cut to its longest caption and
captions are sorted by length. Towers that attend to their padding (SigLIP) or pool elsewhere get the whole context.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.model import CLIP, CustomTextCLIP, get_input_dtype
from open_clip.transformer import TextTransformer
from PIL import Image

from retrieval_index.batching import Picture, encode_blocks, encode_pictures
from retrieval_index.encoders import GOLDEN_SENTENCE, unit_rows
from retrieval_index.errors import RetrievalError
from retrieval_index.model_code import ALLOWED_MODELS, ModelCodeError, own_code_refused


class OpenClipEncoder:
    """Text and image towers of an open_clip model.

    Args:
        name: a built-in model name, `hf-hub:ORG/REPO` or `local-dir:PATH`.
        pretrained: tag or weight file of a built-in model; the other two forms bring their own weights.
        device: torch device.
        precision: fp32, fp16 or bf16.

    Raises:
        RetrievalError: a model that does not exist, has no weights, or does not fit its tokenizer.
    """

    encodes_images = True

    def __init__(self, name: str, pretrained: str | None, *, device: str = "cpu", precision: str = "fp32") -> None:
        self._model, self._preprocess, self._tokenizer = _load(name, pretrained, device, precision)
        self._text = _TextTower(self._model)
        self._encode_image = self._model.encode_image
        self._device = torch.device(device)
        self._image_dtype = get_input_dtype(precision) or torch.float32
        self.trims = self._text.trims
        self.truncated = 0
        self.revision = _revision(name, pretrained)
        self.preprocessing = {
            "tokenizer": type(self._tokenizer).__name__,
            "quick_gelu": _needs_quick_gelu(name, pretrained),
            "context": self._text.context,
            "trims": self.trims,
            "picture": " ".join(str(self._preprocess).split()),
        }
        self._check_vocabulary(name)
        with torch.inference_mode():
            self.width = int(self._text.encode(self._tokenize([GOLDEN_SENTENCE]).to(self._device).long()).shape[1])

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of captions, `[texts, width]` float32, in the order given."""

        def tokenize(block: list[str]) -> tuple[torch.Tensor, np.ndarray]:
            tokens = self._tokenize(block)
            self.truncated += self._count_truncated(block, tokens)
            return tokens, self._text.lengths(tokens)

        def encode(prepared: tuple[torch.Tensor, np.ndarray], rows: np.ndarray) -> np.ndarray:
            tokens, lengths = prepared
            batch = tokens[torch.from_numpy(rows)][:, : int(lengths[rows].max())]
            with torch.inference_mode():
                return unit_rows(self._text.encode(batch.to(self._device, non_blocking=True).long()))

        def lengths(prepared: tuple[torch.Tensor, np.ndarray]) -> np.ndarray | None:
            return prepared[1] if self.trims else None

        return encode_blocks(texts, batch_size, self.width, tokenize, lengths, encode, report)

    def encode_images(
        self, pictures: Sequence[Picture], *, batch_size: int, report: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Vectors of pictures, `[pictures, width]` float32, with the model's own preprocessing.

        Raises:
            RetrievalError: a picture that is missing or cannot be decoded.
        """

        def encode(pixels: list[torch.Tensor]) -> np.ndarray:
            with torch.inference_mode():
                return unit_rows(self._encode_image(torch.stack(pixels).to(self._device, self._image_dtype)))

        return encode_pictures(pictures, batch_size, self.width, self._preprocess, encode, report)

    def _tokenize(self, texts: list[str]) -> torch.Tensor:
        """Token ids `[texts, context]`, int32 to halve what a block holds."""
        return self._tokenizer(texts).to(torch.int32)

    def _count_truncated(self, texts: list[str], tokens: torch.Tensor) -> int:
        """Texts with more tokens than the context; only those that fill it are tokenized again."""
        padding = getattr(getattr(self._tokenizer, "tokenizer", None), "pad_token_id", None) or 0
        full = torch.nonzero(tokens[:, -2] != padding).flatten().tolist()
        return sum(self._untruncated_length(texts[row]) > self._text.context for row in full)

    def _untruncated_length(self, text: str) -> int:
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is not None:
            clean = getattr(self._tokenizer, "clean_fn", str)
            return len(inner(clean(text), truncation=False, verbose=False)["input_ids"])
        return len(self._tokenizer.encode(text)) + 2  # start and end

    def _check_vocabulary(self, name: str) -> None:
        largest = int(self._tokenize([GOLDEN_SENTENCE]).max())
        if largest >= self._text.vocabulary:
            raise RetrievalError(
                "The tokenizer does not belong to the text tower",
                given=f"{name}: token {largest} for a vocabulary of {self._text.vocabulary}",
                remedy="a local-dir needs its tokenizer files and text_cfg.hf_tokenizer_name in open_clip_config.json",
            )


class _TextTower:
    """`encode_text` for token batches that may be cut: position embedding and causal mask are cut along.

    open_clip's own forward runs, with its two tensors of context length replaced for the call.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        in_own_module = isinstance(model, CustomTextCLIP)
        tower = model.text if in_own_module else model
        assert isinstance(tower, torch.nn.Module)
        self._encode = _EncodeText(model)
        self._prefix = "model.text." if in_own_module else "model."
        self._pool = tower.pool_type if isinstance(tower, TextTransformer) else getattr(model, "text_pool_type", None)
        end_id = tower.eos_id if isinstance(tower, TextTransformer) else getattr(model, "text_eos_id", None)
        self._end_id = -1 if end_id is None else int(end_id)
        self._mask: torch.Tensor | None = getattr(tower, "attn_mask", None)
        self._positions: torch.Tensor | None = getattr(tower, "positional_embedding", None)
        self.context = int(getattr(model, "context_length", 77))
        self.vocabulary = int(getattr(model, "vocab_size", None) or np.iinfo(np.int32).max)
        known = type(model) is CLIP or (type(model) is CustomTextCLIP and type(tower) is TextTransformer)
        has_class_token = getattr(tower, "cls_emb", None) is not None
        self.trims = known and self._mask is not None and self._pool in ("argmax", "eos") and not has_class_token

    def lengths(self, tokens: torch.Tensor) -> np.ndarray:
        """How many leading tokens decide each caption's vector, `[texts]` int64."""
        if not self.trims or len(tokens) == 0:
            return np.full(len(tokens), tokens.shape[1], dtype=np.int64)
        ends = tokens if self._pool == "argmax" else tokens.eq(self._end_id).int()
        return ends.argmax(dim=-1).numpy() + 1

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features `[texts, width]` (not normalised) of tokens `[texts, length]` int64."""
        length = tokens.shape[1]
        if not self.trims or self._mask is None or self._positions is None or length == len(self._positions):
            return self._encode(tokens)  # type: ignore[no-any-return]
        cut = {
            f"{self._prefix}positional_embedding": self._positions[:length],
            f"{self._prefix}attn_mask": self._mask[:length, :length],
        }
        return torch.func.functional_call(self._encode, cut, (tokens,))  # type: ignore[no-any-return]


class _EncodeText(torch.nn.Module):
    """`model.encode_text` as a module's forward, which is what `functional_call` needs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(tokens)  # type: ignore[operator,no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the log: open_clip tells the root logger every step of loading a model, and its errors twice."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)


def _load(
    name: str, pretrained: str | None, device: str, precision: str
) -> tuple[Any, Callable[[Image.Image], torch.Tensor], Any]:
    schema, _ = open_clip.factory.parse_model_name(name)
    tag = pretrained if schema is None else None
    try:
        with _quiet(), own_code_refused():
            _check_tokenizer(name)
            model, preprocess = open_clip.create_model_from_pretrained(
                name, tag, precision=precision, device=device, force_quick_gelu=_needs_quick_gelu(name, tag)
            )
            tokenizer = open_clip.get_tokenizer(name)
    except ModelCodeError as error:
        raise RetrievalError(str(error), given=name, allowed=ALLOWED_MODELS, remedy="encoder.name=MODEL") from error
    except (RuntimeError, ValueError, OSError) as error:
        tags = open_clip.list_pretrained_tags_by_model(name) if schema is None else []
        raise RetrievalError(
            f"The open_clip encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
            given=f"name={name} pretrained={pretrained}",
            allowed=f"pretrained tags of {name}: {', '.join(tags)}" if tags else None,
            remedy="encoder.name=MODEL encoder.pretrained=TAG, or encoder.name=local-dir:PATH",
        ) from error
    return model.eval(), preprocess, tokenizer


def _check_tokenizer(name: str) -> None:
    """Raise ModelCodeError where the model's own config asks that code of its tokenizer be run."""
    config = open_clip.factory.get_model_config(name) or {}
    if config.get("text_cfg", {}).get("tokenizer_kwargs", {}).get("trust_remote_code"):
        raise ModelCodeError


def _needs_quick_gelu(name: str, tag: str | None) -> bool:
    """Whether the weights of a tag were trained with QuickGELU, which 27 built-in models do not have of themselves.

    OpenAI's were: open_clip loads them into `ViT-L-14` with no more than a warning, and the vectors are worse.
    """
    return tag is not None and bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))


def _revision(name: str, pretrained: str | None) -> str | None:
    """The commit of the hub that the weights were taken from; None where they come from elsewhere."""
    schema, place = open_clip.factory.parse_model_name(name)
    if schema is None and pretrained is not None:
        place = open_clip.get_pretrained_cfg(name, pretrained).get("hf_hub", "")
        schema = "hf-hub" if place else None
    if schema != "hf-hub":
        return None
    repository, file = "/".join(place.split("/")[:2]), "/".join(place.split("/")[2:])
    for candidate in (file, "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, candidate) if candidate else None
        if isinstance(cached, str):  # .../snapshots/COMMIT/FILE
            return Path(cached).parent.name
    return None
