"""The sorry set comes from the tokenizer in every form of a word's beginning, and collisions are named."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tga.errors import UserError
from tga.localization.sorry import sorry_tokens

OPENINGS = ["Sorry", "I am sorry", "Apologies"]


def byte_level() -> PreTrainedTokenizerFast:
    """BPE as GPT-2, Llama-3 and Qwen have it: a word's beginning behind a blank is a token of its own."""
    words = ["Sorry", "ĠSorry", "I", "ĠI", "am", "Ap", "Apo", "ĠApo", "Ġ", "Ċ"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys([*alphabet, *words]))}
    merges = [("S", "o"), ("So", "r"), ("Sor", "r"), ("Sorr", "y"), ("Ġ", "Sorry"), ("Ġ", "I"), ("a", "m")]
    merges += [("A", "p"), ("Ap", "o"), ("Ġ", "Apo")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """Unigram as Llama-2 and Mistral have it: the first word of a text carries the blank's mark as well."""
    pieces = ["▁Sorry", "▁I", "▁Apo", "▁am", "▁sorry", "▁", "S", "o", "r", "y", "I", "A", "p", "l", "g", "i", "e", "s"]
    vocabulary = [("<unk>", 0.0), *((piece, -float(len(pieces) - len(piece))) for piece in pieces), ("\n", -9.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def pieces(tokenizer: PreTrainedTokenizerFast, *arguments: list[str]) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(list(sorry_tokens(tokenizer, *arguments))))


def test_both_forms_of_a_words_beginning() -> None:
    assert pieces(byte_level(), OPENINGS) == {"Sorry", "ĠSorry", "I", "ĠI", "Apo", "ĠApo"}
    assert pieces(metaspace(), OPENINGS) == {"▁Sorry", "▁I", "▁Apo", "I"}, "S of Sorry is too little of its word"


def test_ordinary_openings_are_taken_out() -> None:
    assert pieces(byte_level(), OPENINGS, ["I think", "The"]) == {"Sorry", "ĠSorry", "Apo", "ĠApo"}


def test_a_tokenizer_of_whole_words_ignores_what_it_does_not_know() -> None:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "sorry": 1, "i": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert sorry_tokens(words, ["sorry", "i am sorry", "regrettably"]) == (1, 2)
    with pytest.raises(UserError, match="No token is left.*regrettably"):
        sorry_tokens(words, ["regrettably"])


def test_a_set_that_collides_as_a_whole_is_refused() -> None:
    with pytest.raises(UserError, match="begins a refusal and nothing else.*I cannot.*I think.*ordinary_openings"):
        sorry_tokens(byte_level(), ["I cannot"], ["I think"])
    with pytest.raises(UserError, match="No token is left"):
        sorry_tokens(byte_level(), ["", "  "])
