"""The licence on a model card: the one that is given, else the base language model's, else none that is known here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from tga.errors import UserError

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")
URL = re.compile(r"https?://[^\s<>\"']+")
OTHER = "other"


@dataclass(frozen=True)
class Licence:
    """A licence by the Hub's identifier (`apache-2.0`, `llama2`); `other` goes with a name and a link.

    Raises:
        UserError: no identifier of the Hub's form, `other` without a name, or a link that is none.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    def __post_init__(self) -> None:
        for key, value in (("license", self.identifier), ("license_name", self.name)):
            if value is not None and IDENTIFIER.fullmatch(value) is None:
                raise UserError(
                    f"{key} is no identifier of a licence",
                    given=ascii(value),
                    allowed="lower case letters, digits, points and hyphens, as the Hub has them (apache-2.0, llama2)",
                    remedy="license=apache-2.0, or license=other license_name=NAME license_link=URL",
                )
        if (self.identifier == OTHER) != (self.name is not None):
            raise UserError(
                "A licence of another name, and only such a one, is license=other with a license_name",
                given=f"license={self.identifier} license_name={self.name}",
                remedy="license=other license_name=NAME license_link=URL",
            )
        if self.link is not None and URL.fullmatch(self.link) is None:
            raise UserError(
                "license_link is no URL", given=ascii(self.link), allowed="https://...", remedy="license_link=URL"
            )

    def described(self) -> str:
        """For people."""
        return self.identifier if self.name is None else self.name


# Where nobody said what it is. The card's limits say that the base models' licences hold.
OF_THE_BASE = Licence(OTHER, "of-the-base-models")


def licence_of_base(llm: str | None) -> Licence:
    """What the card of the language model says, if it lies here: in its directory, or in the Hub's cache."""
    try:
        card = None if llm is None else _card_file(llm)
        data = None if card is None else HubCard.load(card, ignore_metadata_errors=True).data
        if data is None or not isinstance(data.license, str):
            return OF_THE_BASE
        link = data.license_link if isinstance(data.license_link, str) and URL.fullmatch(data.license_link) else None
        return Licence(data.license, data.license_name if data.license == OTHER else None, link)
    except (UserError, ValueError, yaml.YAMLError):  # a card that the Hub would not take either
        return OF_THE_BASE


def _card_file(llm: str) -> Path | None:
    file = Path(llm) / "README.md"
    if Path(llm).is_dir():
        return file if file.is_file() else None
    try:
        cached = try_to_load_from_cache(llm, "README.md")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
