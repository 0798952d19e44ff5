"""The program that loads an exported directory again: plain transformers, in a process of its own, nothing of `tga`.

`tga.export.verify` starts it and compares what it found. Arguments: one JSON object with `directory`, `prompt`,
`attention` and `to`, the file that the answer goes to.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

QUESTION = "What is in the picture?"
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
NAMED = 5  # keys of each kind that are reported


def probe(model: Any, processor: Any, prompt: str | None) -> tuple[list[int], Tensor]:
    """Token ids of a fixed question about a fixed picture, and the logits `[vocabulary]` (float32, CPU) that follow.

    prompt: the text beside the picture, for a processor without a chat template.
    """
    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    if prompt is None:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs.to(model.device, model.dtype)).logits[0, -1]
    return inputs["input_ids"][0].tolist(), logits.float().cpu()


def main(asked: dict[str, Any]) -> None:
    """Load, answer, and write what was found: keys that do not fit (then nothing else), token ids, logits."""
    model, report = AutoModelForImageTextToText.from_pretrained(
        asked["directory"],
        dtype="auto",
        attn_implementation=asked["attention"],
        output_loading_info=True,
        trust_remote_code=False,
    )
    keys = {name: sorted(map(str, report[name]))[:NAMED] for name in KEYS if report.get(name)}
    processor = AutoProcessor.from_pretrained(asked["directory"], trust_remote_code=False)
    ids, logits = ([], torch.empty(0)) if keys else probe(model.eval(), processor, asked["prompt"])
    torch.save({"keys": keys, "ids": ids, "logits": logits}, asked["to"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
