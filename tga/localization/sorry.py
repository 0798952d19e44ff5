"""The sorry set: tokens that begin a refusal, taken from the tokenizer and a list of openings, never from fixed ids.

Of each opening ("Sorry", "I am sorry") the first token counts, in the forms that it takes at the beginning of a text,
behind a blank and behind a line break, as tokenizers write a word's beginning in different ways. A first token that is
only a piece of its word counts if it has three letters of it ("Apolog" does, "S" of "Sorry" does not: that begins half
of all words).

An opening such as "I cannot" begins with "I", and so do ordinary answers. Which tokens begin ordinary answers depends
on the model; those that `ordinary` lists are taken out of the set, and `tga-locate` reports how often the set's tokens
open the answer to a benign prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tga.errors import UserError

BEFORE = ("", " ", "\n")
LETTERS = 3


def sorry_tokens(
    tokenizer: PreTrainedTokenizerBase, openings: Sequence[str], ordinary: Sequence[str] = ()
) -> tuple[int, ...]:
    """Ids of the tokens with which the openings begin, without those with which the ordinary openings begin; sorted.

    Raises:
        UserError: no opening; or nothing is left, because every opening begins like an ordinary one, or is unknown to
            the tokenizer.
    """
    begins = {opening: _first_tokens(tokenizer, opening) for opening in openings}
    taken = {token for opening in ordinary for token in _first_tokens(tokenizer, opening)}
    found = {token for tokens in begins.values() for token in tokens} - taken
    if not found:
        collide = [opening for opening, tokens in begins.items() if tokens]
        raise UserError(
            "No token is left that begins a refusal and nothing else",
            given=f"openings {list(openings)}, known to the tokenizer: {collide}; ordinary openings {list(ordinary)}",
            allowed="at least one opening whose first word begins no ordinary answer, such as Sorry",
            remedy="localization.openings=[...] in the model's own words, or localization.ordinary_openings=[]",
        )
    return tuple(sorted(found))


def _first_tokens(tokenizer: PreTrainedTokenizerBase, opening: str) -> set[int]:
    """The first token of an opening in each of its forms, where it is known and long enough."""
    words = opening.split()
    if not words:
        return set()
    found = set()
    for before in BEFORE:
        encoding = tokenizer(before + opening.strip(), add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            covered = end - max(start, len(before))
            if covered <= 0:  # the blank or line break itself
                continue
            if token != tokenizer.unk_token_id and covered >= min(LETTERS, len(words[0])):
                found.add(int(token))
            break
    return found
