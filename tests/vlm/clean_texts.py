"""Token ids of texts without any control token, in every field that a text can stand in; hashed for the golden file.

`python -m tests.vlm.clean_texts` writes the golden file anew. It was written before control tokens were taken out of
texts; it changes only where the tokens of ordinary texts are meant to change.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.vocabularies import TOKENIZERS, tokenizer_of
from tga.evaluation.model_judge import JudgeForm
from tga.localization.prompts import text_prompt
from tga.vlm.templates import render
from tga.vlm.token_spans import encode_prompts, encode_texts

GOLDEN = Path(__file__).with_name("clean_token_ids.json")
TEXTS = (
    "A small red car stands beside a green tree.",
    "Two cats  sit on a chair:\n\n  x < 3 > y | z, [sic] {e.g.} <5 m/s>, s/he, a|b",
    "im_start, user, assistant and end_of_turn are words; caf\u00e9 \u00f5 \U0001f408 \u732b",
    " I am sorry, but I cannot help with that request. ",
)


def clean_ids(tokenizer: Any) -> dict[str, str]:
    """A hash of the ids, by field."""
    prompts = {
        template: [
            render(
                [("user", f"<image>\n{text}"), ("assistant", text), ("user", text), ("assistant", text)],
                template=template,
                tokenizer=tokenizer,
                image=True,
                retrieved=text,
            )
            for text in TEXTS
        ]
        for template in ("plain", "vicuna_v1", "tokenizer")
    }
    encoded = {
        template: encode_prompts(rendered, tokenizer, image_tokens=[3] * len(rendered))
        for template, rendered in prompts.items()
    }
    found = {f"prompt {name}": [prompt.input_ids.tolist() for prompt in made] for name, made in encoded.items()}
    found |= {f"labels {name}": [prompt.labels.tolist() for prompt in made] for name, made in encoded.items()}
    found["text"] = [ids.tolist() for ids, _ in encode_texts(tokenizer, TEXTS)]
    found["judge"] = [tokenizer(JudgeForm().text(tokenizer, text, text)).input_ids for text in TEXTS]
    found["located"] = [list(text_prompt(tokenizer, "1", text, [], template="tokenizer").tokens) for text in TEXTS]
    return {field: hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12] for field, ids in found.items()}


if __name__ == "__main__":
    golden = {f"{model}/{make}": clean_ids(tokenizer_of(model, make)) for model, make in TOKENIZERS}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
