"""How a stage is named: a model of the catalog, with options of its own."""

import re

from stratum_models.batching import RESIZING
from stratum_models.errors import UserError


def parse_stage(option: str, text: str) -> tuple[str, dict[str, str]]:
    """``"unet_s2:width=16,loss=ce"`` as ``("unet_s2", {"width": "16", "loss": "ce"})``; a value may hold commas.

    Raises:
        UserError: there is no name, an option has no value or comes twice, or it would resize what the pipeline has scaled or cut.
    """
    name, colon, rest = text.partition(":")
    parts = [part.partition("=") for part in re.split(r",(?=\s*\w+\s*=)", rest)] if colon else []
    options = {key.strip(): value.strip() for key, _, value in parts}
    if not name or len(options) != len(parts) or not all(key and equals for key, equals, _ in parts):
        raise UserError(f"option {option}={text!r}: write a model of the catalog, with each option once, like unet_s2:width=16,loss=ce")
    for key in RESIZING:
        if key in options:
            raise UserError(f"option {option}={text!r}: {key} would change the resolution of a stage; leave it out and use scale or patch")
    return name.strip(), options
