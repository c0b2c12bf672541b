"""What a client calls a model: ``losnet`` (its champion), ``losnet@alias`` or ``losnet@3``."""

import re
from dataclasses import dataclass

from stratum_serve.problems import Problem

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_REFERENCE = re.compile(rf"({NAME})(?:@({NAME}))?")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model by name, and which of its versions: empty for what is live."""

    name: str
    which: str = ""

    @property
    def version(self) -> str:
        """The version's number, empty where it is an alias or nothing."""
        return self.which if self.which.isdecimal() else ""

    def __str__(self) -> str:
        return f"{self.name}@{self.which}" if self.which else self.name


def parse_reference(text: str) -> Reference:
    """The reference that a path names. Raises Problem for what can be no name."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise Problem("unknown-model", f"{text[:100]!r} is no model's name: write name, name@alias or name@3")
    return Reference(name=match[1], which=match[2] or "")
