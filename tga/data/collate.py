"""Samples -> one batch: tokens, labels, span masks, pictures, and the texts fed to the language model alone.

Prompts and texts are padded on the right. Pictures are decoded one by one and go through the image processor
together. What a picture becomes is the processor's business (`tga.vlm.pictures`); that the model agrees is checked
before the training (`tga.vlm.image_tokens`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tga.data.batch import FILLER, Batch
from tga.data.picture import GreyPicture, Picture, load_picture
from tga.data.sample import IMAGE_MARKER, Sample, Turn
from tga.errors import UserError
from tga.vlm.lm_loss import IGNORED_LABEL
from tga.vlm.pictures import Pictures
from tga.vlm.plain_text import plain_texts
from tga.vlm.templates import Rendered, render
from tga.vlm.token_spans import Encoded, encode_prompts, encode_texts

RETRIEVED = ("prompt", "loss", "none")
Stored = Callable[[Sequence[str]], Tensor]
Features = Callable[[Sequence[Picture]], Tensor]


class Collator:
    """Builds batches of one template; it can be sent to data workers.

    Args:
        processor: of a supported family (`tga.vlm.families`); its tokenizer and image processor are used.
        template: a name of `tga.vlm.templates.TEMPLATES`.
        image_tokens: of one picture, from `tga.vlm.image_tokens.check_image_tokens`; where the number depends on the
            picture it is not used.
        retrieved: "prompt": the retrieved text stands before the image; "loss": it is fed to the language model
            alone; "none".
        max_length: tokens of a prompt, and of a caption or retrieved text; what is longer is cut at its end.

    Raises:
        UserError: an unknown value of `retrieved`.
    """

    def __init__(self, processor: Any, template: str, *, image_tokens: int, retrieved: str, max_length: int) -> None:
        if retrieved not in RETRIEVED:
            allowed = ", ".join(RETRIEVED)
            raise UserError(
                "Unknown use of the retrieved text", given=retrieved, allowed=allowed, remedy="alignment.retrieved=..."
            )
        self.tokenizer, self.picture_codec = processor.tokenizer, Pictures(processor)
        self.template, self.image_tokens, self.retrieved, self.max_length = (
            template,
            image_tokens,
            retrieved,
            max_length,
        )
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = pad if pad is not None else self.tokenizer.eos_token_id
        self.stored: Stored | None = None
        self.token_weights: Tensor | None = None
        self.features: Features | None = None
        self._filler: tuple[Sample, ...] = ()

    def with_stored(self, stored: Stored) -> Collator:
        """The same collator, whose batches bring stored states of the texts: texts -> `[layers, texts, width]`."""
        made = copy.copy(self)
        made.stored = stored
        return made

    def with_token_weights(self, weights: Tensor) -> Collator:
        """The same collator, for texts of whose tokens each weighs what `weights` `[vocabulary]` says when pooled."""
        made = copy.copy(self)
        made.token_weights = weights
        return made

    def with_features(self, features: Features) -> Collator:
        """The same collator, whose batches bring features of the pictures as `pixel_values`; no picture is opened.

        features: pictures -> `[pictures, image tokens, vision width]`.
        """
        made = copy.copy(self)
        made.features = features
        return made

    def with_fillers(self) -> Collator:
        """The same collator, whose batches all have a picture: one of text alone gets a grey one at its end.

        The row has the empty id, no label, no caption and no neighbour, so it gives zeros to every loss. Where many
        processes share out the weights, each has to run the same modules at every step.
        """
        made = copy.copy(self)
        turns = (Turn("user", ""), Turn("assistant", ""))
        made._filler = (Sample(FILLER, (GreyPicture(),), turns, None),)
        return made

    def target_texts(self, samples: Iterable[Sample]) -> Iterator[str]:
        """Every text of the samples that is fed to the language model alone, "" where a sample has none."""
        for sample in samples:
            yield sample.caption or ""
            if self.retrieved == "loss":
                yield "\n".join(sample.neighbours)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Collate.

        Raises:
            UserError: image markers that do not fit the pictures, a picture that cannot be read, or a prompt whose
                image tokens do not fit into `max_length`; it names the sample.
        """
        if not any(sample.images for sample in samples):
            samples = (*samples, *self._filler)
        for sample in samples:
            _check_markers(sample)
        opened = [] if self.features is not None else samples
        images = [[load_picture(image, sample.id) for image in sample.images] for sample in opened]
        prompts = self._prompts(samples, [[image.size for image in own] for own in images])
        input_ids = self._pad([prompt.input_ids for prompt in prompts], self.pad_token_id)
        attention = self._pad([torch.ones_like(prompt.input_ids) for prompt in prompts], 0)
        said = [sample.caption or "" for sample in samples]
        found = ["\n".join(sample.neighbours) for sample in samples] if self.retrieved == "loss" else None
        captions = self.texts(said)
        apart = self.texts(found) if found is not None else (None, None, None)
        pictures = self._picture_inputs(images, prompts, input_ids)
        if self.features is not None and (shown := [image for sample in samples for image in sample.images]):
            pictures = {"pixel_values": self.features(shown)}
        return Batch(
            ids=[sample.id for sample in samples],
            input_ids=input_ids,
            attention_mask=attention,
            labels=self._pad([prompt.labels for prompt in prompts], IGNORED_LABEL),
            pixel_values=pictures.pop("pixel_values", None),
            picture_inputs=pictures,
            image_mask=self._pad([prompt.image_mask for prompt in prompts], 0),
            retrieved_mask=self._pad([prompt.retrieved_mask for prompt in prompts], 0),
            caption_ids=captions[0],
            caption_attention_mask=captions[1],
            caption_mask=captions[2],
            retrieved_ids=apart[0],
            retrieved_attention_mask=apart[1],
            retrieved_text_mask=apart[2],
            caption_states=self.stored(said) if self.stored is not None else None,
            retrieved_states=self.stored(found) if self.stored is not None and found is not None else None,
        )

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Texts as they are fed to the language model alone.

        Returns:
            ids and attention mask `[batch, tokens]` int64, and the span to pool, `[batch, tokens]` bool: without
            padding and BOS, empty for an empty text (which still attends to one token, since attention to nothing has
            no value).
        """
        spoken = iter(encode_texts(self.tokenizer, [text for text in texts if text]))
        encoded = [next(spoken) if text else self._nothing() for text in texts]
        ids = [tokens[: self.max_length] for tokens, _ in encoded]
        attention = self._pad([torch.ones_like(tokens) for tokens in ids], 0)
        span = self._pad([mask[: self.max_length] for _, mask in encoded], 0)
        return self._pad(ids, self.pad_token_id), attention, span

    def pictures(self, samples: Sequence[Sample]) -> Tensor:
        """`[pictures, 3, height, width]` float32, in the order of the samples and of the pictures of each.

        For families whose pictures are such a tensor and nothing else (LLaVA-1.5).

        Raises:
            UserError: a file that is no picture or cannot be read.
        """
        shown = [(image, sample.id) for sample in samples for image in sample.images]
        return self.pixels([image for image, _ in shown], [name for _, name in shown])

    def pixels(self, pictures: Sequence[Picture], names: Sequence[str]) -> Tensor:
        """As :meth:`pictures`, of pictures by themselves; `names` are the ids of the samples that an error names."""
        images = [load_picture(picture, name) for picture, name in zip(pictures, names, strict=True)]
        return self.picture_codec.inputs(images, [[] for _ in images])["pixel_values"]

    def _picture_inputs(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[Encoded], input_ids: Tensor
    ) -> dict[str, Tensor]:
        """All pictures of the batch, in the order in which their tokens stand in it; empty without pictures."""
        if not any(images):
            return {}
        asked: list[list[int]] = []
        if self.picture_codec.reads_prompts:
            asked = [_before_the_answer(prompt) for prompt, own in zip(prompts, images, strict=True) for _ in own]
        inputs = self.picture_codec.inputs([image for own in images for image in own], asked)
        return inputs | self.picture_codec.token_inputs(input_ids)

    def _prompts(self, samples: Sequence[Sample], sizes: Sequence[Sequence[tuple[int, int]]]) -> list[Encoded]:
        """Tokens of each sample, cut to `max_length`; `sizes` are the width and height of its pictures."""
        codec = self.picture_codec
        tokens: list[int | Sequence[tuple[int, ...]]] = [self.image_tokens] * len(samples)
        if codec.vary:
            tokens = [[codec.tokens(size) for size in own] for own in sizes]
        rendered = [self._rendered(sample) for sample in samples]
        encoded = encode_prompts(rendered, self.tokenizer, image_tokens=tokens, image_token=codec.token)
        return [self._cut(prompt, sample) for prompt, sample in zip(encoded, samples, strict=True)]

    def _rendered(self, sample: Sample) -> Rendered:
        codec = self.picture_codec
        retrieved = "\n".join(sample.neighbours) if self.retrieved == "prompt" else ""
        return render(
            [(turn.role, self._with_image_token(turn.text)) for turn in sample.turns],
            template=self.template,
            tokenizer=self.tokenizer,
            image=bool(sample.images),
            retrieved=retrieved or None,
            image_token=codec.token,
            picture=codec.text,
        )

    def _with_image_token(self, text: str) -> str:
        """Words with the image token for each marker; written out by itself it is no marker but a control token."""
        return self.picture_codec.token.join(plain_texts(self.tokenizer, text.split(IMAGE_MARKER)))

    def _cut(self, encoded: Encoded, sample: Sample) -> Encoded:
        kept = slice(None, self.max_length)
        if encoded.image_mask[self.max_length :].any():
            end = _last(encoded.image_mask) + 1
            given = f"sample {sample.id}: {len(encoded.input_ids)} tokens, the image ends at {end}"
            allowed = f"image tokens within the first {self.max_length}"
            remedy = "data.max_length=... larger, or data.neighbours_used=... smaller"
            raise UserError("A prompt is too long for its image", given=given, allowed=allowed, remedy=remedy)
        return Encoded(
            encoded.input_ids[kept],
            encoded.labels[kept] if sample.id != FILLER else torch.full_like(encoded.labels[kept], IGNORED_LABEL),
            encoded.image_mask[kept],
            encoded.retrieved_mask[kept],
            encoded.images,
        )

    def _nothing(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([self.pad_token_id]), torch.tensor([False])

    @staticmethod
    def _pad(rows: list[Tensor], value: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value)


def _check_markers(sample: Sample) -> None:
    """Every picture has one marker in the user's words; a single one needs none, as it stands before the first turn.

    Raises:
        UserError: another number of markers, or one in an answer; it names the sample.
    """
    counts = [(turn.role, turn.text.count(IMAGE_MARKER)) for turn in sample.turns]
    asked = sum(count for role, count in counts if role == "user")
    answered = sum(count for _, count in counts) - asked
    pictures = len(sample.images)
    if answered or (asked != pictures and (asked, pictures) != (0, 1)):
        raise UserError(
            "The image markers of a record do not fit its pictures",
            given=f"sample {sample.id}: {pictures} pictures, {asked} {IMAGE_MARKER} asked, {answered} answered",
            allowed=f"one {IMAGE_MARKER} per picture, in a question; none for a single picture",
            remedy="mend the record, or remove it",
        )


def _before_the_answer(prompt: Encoded) -> list[int]:
    """The tokens up to the first label: what is known when the model begins to answer."""
    answer = (prompt.labels != IGNORED_LABEL).nonzero().flatten().tolist()
    return prompt.input_ids[: answer[0] if answer else None].tolist()


def _last(mask: Tensor) -> int:
    return int(mask.nonzero()[-1])
