"""What a picture becomes: tokens in the prompt, and tensors beside it. The processor decides both; here it is asked.

A picture's tokens depend on its size at most, never on what it shows, so the processor is asked once per size, with a
grey picture. Tensors come from the image processor under the names that the model's forward takes: pixel_values, and
whatever else the family needs (image_sizes, image_grid_thw, pixel_attention_mask, the tokens that a Q-Former reads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tga.errors import UserError
from tga.vlm.families import Family, family_of_processor
from tga.vlm.plain_text import plain_texts

GREY_SIZE = (64, 64)


class Pictures:
    """The pictures of one processor; it can be sent to data workers.

    Args:
        processor: of a supported family.
        family: the processor's own where it is not given.

    Attributes:
        token: the image token; `token_id` its id.
        text: what stands for a picture in the text of a prompt, before its tokens are written out.
    """

    def __init__(self, processor: Any, family: Family | None = None) -> None:
        self.processor, self.family = processor, family or family_of_processor(processor)
        self.token = str(processor.image_token)
        self.token_id = int(processor.tokenizer.convert_tokens_to_ids(self.token))
        self.text = self.token.join(self.family.picture_ends)
        self._known: dict[tuple[int, int], tuple[int, ...]] = {}

    @property
    def vary(self) -> bool:
        """Whether the number of tokens depends on the picture's size."""
        return self.family.tokens_vary

    @property
    def reads_prompts(self) -> bool:
        """Whether `inputs` depends on the prompts (a Q-Former reads them)."""
        return self.family.question_tokenizer is not None

    def tokens(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Ids that stand in the prompt for a picture: image tokens, and what the processor writes between them.

        Args:
            size: width and height of the picture in pixels; needed where `vary` holds.

        Raises:
            UserError: a size that the processor refuses.
        """
        if self.family.tokens_attribute is not None:
            return (self.token_id,) * int(getattr(self.processor, self.family.tokens_attribute))
        key = size if self.vary and size is not None else GREY_SIZE
        if key not in self._known:
            self._known[key] = self._ask(key)
        return self._known[key]

    def count(self, size: tuple[int, int] | None = None) -> int:
        """How many of `tokens(size)` are image tokens."""
        return self.tokens(size).count(self.token_id)

    def inputs(self, images: Sequence[Image.Image], prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The tensors of some pictures, in the order in which their tokens stand in the batch.

        Args:
            images: RGB pictures.
            prompts: for each picture the token ids of its prompt up to the first answer; not looked at unless
                `reads_prompts`.

        Returns:
            Names of the model's forward -> tensors; floating ones are float32.
        """
        found = self.processor.image_processor(images=list(images), return_tensors="pt")
        inputs = {name: found[name] for name in self.processor.image_processor.model_input_names}
        if self.family.question_tokenizer is not None:
            texts = [self.processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in prompts]
            tokenizer = getattr(self.processor, self.family.question_tokenizer)
            texts = plain_texts(tokenizer, texts)  # its control tokens are not those of the language model
            read = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
            inputs |= {"qformer_input_ids": read["input_ids"], "qformer_attention_mask": read["attention_mask"]}
        return inputs

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """What the model's forward wants to know of each token of a batch with pictures, by argument."""
        if self.family.token_types is None:
            return {}
        return {self.family.token_types: (input_ids == self.token_id).to(torch.int64)}

    def _ask(self, size: tuple[int, int]) -> tuple[int, ...]:
        grey = Image.new("RGB", size, "grey")
        try:
            probe = self.processor(images=[[grey]], text=[self.token], add_special_tokens=False, return_tensors="pt")
        except ValueError as error:
            raise UserError(
                f"The processor refuses pictures of this size ({error})",
                given=f"{size[0]} x {size[1]} pixels",
                remedy="replace the picture, or remove its record",
            ) from error
        return tuple(probe["input_ids"][0].tolist())


def to_model(inputs: Mapping[str, Tensor], device: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of `Pictures` on the model's device, the floating ones in its dtype."""
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()}
