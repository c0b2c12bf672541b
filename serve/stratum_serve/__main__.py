"""``python -m stratum_serve [field=value ...]``: ``serve run stratum_serve.app:build``, once the configuration is known to be good."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from stratum_models.errors import UserError
from stratum_serve.config import ServeArgs, load_config
from stratum_serve.keys import KeyRing

EXIT_USER_ERROR = 2


def check(argv: Sequence[str]) -> None:
    """Raises UserError where the arguments make no configuration."""
    pairs = [text.partition("=") for text in argv]
    bad = [name + equals for name, equals, value in pairs if not (name and equals and value)]
    if bad:
        raise UserError(f"{bad[0]!r}: write field=value, such as models=losnet or config=serving.yaml")
    config = load_config(ServeArgs.model_validate({name: value for name, _, value in pairs}))
    KeyRing(config.keys_file)


def main(argv: Sequence[str]) -> int:
    """Check the configuration, then become Serve's own command line; what cannot be used is one line and exit code 2."""
    try:
        check(argv)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_USER_ERROR
    return _become_serve(argv)


def _become_serve(argv: Sequence[str]) -> NoReturn:
    command = Path(sys.executable).with_name("serve")
    os.execv(command, [str(command), "run", "stratum_serve.app:build", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
