"""A language model whose tokenizer is a `tokenizer.model` alone, as Vicuna-7B's is: trained here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

from tests.tiny import SENTENCES

# As in Vicuna's repository.
CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "model_max_length": 512,
}


def make_sentencepiece(llm: Path) -> None:
    """Replace the tokenizer in the directory of a tiny language model by a SentencePiece model of up to 320 pieces."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (llm / name).unlink(missing_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type="bpe", vocab_size=320, hard_vocab_limit=False,
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    (llm / "tokenizer.model").write_bytes(model.getvalue())
    (llm / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
