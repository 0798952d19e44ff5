"""Tokenizers with the control tokens that published models carry, in the four makes there are; built here, no file.

`PUBLISHED` names, for each model, the tokens that its tokenizer.json lists as special and those that it merely adds.
`MAKES` builds a small tokenizer around any of these lists: byte-level BPE (GPT-2, Llama-3, Qwen), BPE of SentencePiece
with byte fallback (Llama-2, Vicuna, Mistral), Unigram of SentencePiece (T5, XLM-R), and whole words in lower case (the
mini world).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE, SENTENCES, tiny_tokenizer


class Tokens(NamedTuple):
    """What a tokenizer.json lists under `added_tokens`, by its flag `special`."""

    special: tuple[str, ...]
    added: tuple[str, ...] = ()


PUBLISHED: dict[str, Tokens] = {
    "vicuna": Tokens(("<s>", "</s>", "<unk>"), ("<pad>",)),
    "llava": Tokens(("<s>", "</s>", "<unk>", "<image>", "<pad>"), ("<im_start>", "<im_end>", "<im_patch>")),
    "mistral": Tokens(("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]")),
    "llama_3": Tokens(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
         "<|python_tag|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|image|>")
    ),
    "qwen2_5_vl": Tokens(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
         "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
         "<|image_pad|>", "<|video_pad|>"),
        ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
         "<|repo_name|>", "<|file_sep|>", "<think>", "</think>"),
    ),
    "smollm2": Tokens(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
         "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
         "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>")
    ),
    "smolvlm": Tokens(
        ("<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>",
         "<row_2_col_3>"),
    ),
    "phi_3": Tokens(
        ("<s>", "<unk>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"),
        ("</s>",),
    ),
    "gemma": Tokens(
        ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"),
        ("[multimodal]", "<unused0>", "<unused98>", "<table>", "</table>", "<h1>", "</strong>", "\n\n", "\u2581\u2581"),
    ),
    "instructblip": Tokens(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")),
    "falcon": Tokens((">>TITLE<<", ">>QUESTION<<", ">>ANSWER<<", "<|endoftext|>")),
    "deepseek": Tokens(
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<think>",
         "\u00f5"),
    ),
    "olmo": Tokens(("<|endoftext|>", "<|padding|>"), ("|||EMAIL_ADDRESS|||", "|||IP_ADDRESS|||", "  ", "    ")),
    "internlm": Tokens(("<unk>", "<s>", "</s>"), ("<|im_start|>", "<|im_end|>", "[UNUSED_TOKEN_145]", "<|plugin|>")),
}  # fmt: skip
# What every make needs to be a tokenizer of a model, whichever tokens a model adds to it.
OWN = ("<s>", "</s>", "<pad>", "<unk>", "<image>")


def byte_level() -> Tokenizer:
    """Byte-level BPE, trained on a few sentences."""
    return tiny_tokenizer().backend_tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """BPE as it is converted from SentencePiece: blanks as U+2581, bytes for what is unknown."""
    words = sorted({"\u2581" + word for sentence in SENTENCES for word in sentence.split()})
    letters = sorted({letter for word in words for letter in word} | set("<|>[]/_{}'\"-"))
    pieces = [*OWN, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(1, len(word)):
            merges.setdefault((word[:end], word[end]))
            pieces.append(word[: end + 1])
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram: its model finds a whole piece in any text, control tokens among them, also where nothing is added."""
    words = sorted({"\u2581" + word for sentence in SENTENCES for word in sentence.split()})
    letters = sorted({letter for word in words for letter in word} | set("<|>[]/_{}'\"-"))
    pieces = [*((piece, 0.0) for piece in OWN), *((word, -2.0) for word in words), *((one, -9.0) for one in letters)]
    tokenizer = Tokenizer(models.Unigram([*dict(pieces).items()], unk_id=OWN.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def words() -> Tokenizer:
    """Whole words in lower case, as the mini world's."""
    known = sorted({word for sentence in SENTENCES for word in sentence.lower().replace(".", " .").split()})
    vocabulary = {word: number for number, word in enumerate([*OWN, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


MAKES: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level, "sentencepiece_bpe": sentencepiece_bpe, "unigram": unigram, "words": words,
}  # fmt: skip


@functools.cache
def tokenizer_of(model: str, make: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one make that carries a model's tokens; it is asked by many tests and changed by none."""
    backend = MAKES[make]()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
    special, added = PUBLISHED[model]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=token != "</s>") for token in added])
    return tokenizer


TOKENIZERS = [(model, make) for model in PUBLISHED for make in MAKES]
