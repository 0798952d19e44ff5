"""Texts that nobody vouches for, without control tokens: a caption, a question or an answer cannot open a turn.

A tokenizer finds its control tokens (`<|im_end|>`, `</s>`, `<image>`, `[INST]`) anywhere in a text. In a prompt only
those of the template may be there. So a text from outside goes through :func:`plain_text` before it meets a template or
the tokenizer: each control token in it is taken out, and a blank stands in its place where two words would join.

Control tokens are those of three signs and more that a tokenizer lists as special, and those that it merely adds if
they stand between brackets or bars (`<tool_call>`, `[UNUSED_TOKEN_145]`, `|||EMAIL_ADDRESS|||`). What else is added is
text: runs of blanks and line breaks, single letters, words. The tokenizer itself has the last word on what it finds:
that covers tokens matched after Unicode normalisation, and Unigram models, which find `</s>` in a text although nothing
is added (`split_special_tokens` leaves both as they are). The tokens of all other texts stay what they were.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tga.errors import UserError

# First and last characters of what is a control token though not listed as special.
_OPENING, _CLOSING = "<[{|>\uff5c\uff1c\u3008\u3010", ">]}|<\uff5c\uff1e\u3009\u3011"
_BLANKS = " \t\r\n\u2581"  # U+2581 is SentencePiece's blank


def plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` without the control tokens that `tokenizer` finds in it; unchanged where it finds none.

    Raises:
        UserError: a slow tokenizer finds one and cannot say where.
    """
    controls = _control_tokens(tokenizer, len(tokenizer))
    if not controls.suspected(text):
        return text
    while places := controls.places(tokenizer, text):
        for start, end in reversed(places):
            before, after = text[:start], text[end:]
            joins = bool(before) and bool(after) and not before[-1].isspace() and not after[0].isspace()
            text = before + (" " if joins else "") + after
    return text


def plain_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """:func:`plain_text` of each."""
    return [plain_text(tokenizer, text) for text in texts]


def count_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """How many control tokens the tokenizer finds in a text that stands alone, those for unknown text apart."""
    controls = _control_tokens(tokenizer, len(tokenizer))
    return len(controls.places(tokenizer, text)) if controls.suspected(text) else 0


def control_places(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Where control tokens stand in an encoded text.

    Args:
        ids, offsets: what the tokenizer made of `text`; first character of each token and the one after its last.

    Returns:
        Places in characters of `text`, without the blanks that a token swallowed, end exclusive, in rising order.
    """
    return _control_tokens(tokenizer, len(tokenizer)).found(text, ids, offsets)


@dataclass(frozen=True)
class _ControlTokens:
    """The control tokens of one tokenizer.

    Attributes:
        ids: their ids.
        written: matches any of them as it is written, or as the tokenizer's normaliser writes it; None without any.
        normalizer: the fast tokenizer's, or None.
        unknown: the id and the writing of the token for unknown text, which is no control token where text is unknown.
    """

    ids: frozenset[int]
    written: re.Pattern[str] | None
    normalizer: Any
    unknown: tuple[int, str] | None

    def suspected(self, text: str) -> bool:
        """Whether the tokenizer may find one: a quick answer, never wrong where it is False."""
        if self.written is None:
            return False
        return bool(self.written.search(text)) or (
            self.normalizer is not None and bool(self.written.search(self.normalizer.normalize_str(text)))
        )

    def places(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
        """Where the tokenizer finds one in a text that stands alone."""
        if tokenizer.is_fast:
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return self.found(text, encoding["input_ids"], encoding["offset_mapping"])
        ids = self.ids & set(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        assert self.written is not None
        places = [match.span() for match in self.written.finditer(text)] if ids else []
        if not places and ids - {self.unknown[0] if self.unknown else None}:
            raise UserError(
                "A text holds a control token of the tokenizer, which cannot say where",
                given=ascii(text[:200]),
                allowed="a fast tokenizer (tokenizer.json)",
                remedy="take it out of the text",
            )
        return places

    def found(self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where control tokens stand among the tokens of a text."""
        places = []
        for identity, (start, end) in zip(ids, offsets, strict=True):
            if identity in self.ids:
                while start < end and _is_blank(text[start]):  # a token may swallow the blanks beside it
                    start += 1
                while start < end and _is_blank(text[end - 1]):
                    end -= 1
                if start < end and not self._is_unknown_text(identity, text[start:end]):
                    places.append((start, end))
        return sorted(set(places))

    def _is_unknown_text(self, identity: int, written: str) -> bool:
        if self.unknown is None or identity != self.unknown[0]:
            return False
        token = self.unknown[1]
        if self.normalizer is None:
            return token not in written
        return token not in written and self.normalizer.normalize_str(token).strip(_BLANKS) not in (
            self.normalizer.normalize_str(written)
        )


@functools.lru_cache(maxsize=16)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, _size: int) -> _ControlTokens:
    """Those of a tokenizer; asked again when it has grown."""
    known = {int(identity): str(token) for identity, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ids = {identity: token for identity, token in known.items() if _is_control(token, token in special)}
    for token in special:
        identity = tokenizer.convert_tokens_to_ids(token)
        if isinstance(identity, int) and _is_control(token, special=True):
            ids[identity] = token
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    written = set(ids.values())
    if normalizer is not None:
        written |= {normalizer.normalize_str(token) for token in ids.values()}
    written |= {token.strip(_BLANKS) for token in written}
    pattern = "|".join(re.escape(token) for token in sorted(written - {""}, key=len, reverse=True))
    unknown = tokenizer.unk_token
    return _ControlTokens(
        ids=frozenset(ids),
        written=re.compile(pattern) if pattern else None,
        normalizer=normalizer,
        unknown=None if unknown is None else (int(tokenizer.convert_tokens_to_ids(unknown)), str(unknown)),
    )


def _is_control(token: str, special: bool) -> bool:
    """A sign that a tokenizer pads with (`!`) is text all the same."""
    bare = token.strip(_BLANKS)
    return len(bare) > 2 and (special or (bare[0] in _OPENING and bare[-1] in _CLOSING))


def _is_blank(character: str) -> bool:
    return character.isspace() or character in _BLANKS
