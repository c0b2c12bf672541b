"""``python -m stratum_serve [field=value ...]``: the server in the foreground, once the configuration is known to be good.

On the Ray that ``RAY_ADDRESS`` names, or on one of this process's own, which nobody else can use.
"""

import sys
from collections.abc import Sequence

from stratum.cluster import ray_cluster
from stratum_models.errors import UserError
from stratum_serve.config import ServeArgs, load_config
from stratum_serve.keys import KeyRing

EXIT_USER_ERROR = 2


def checked(argv: Sequence[str]) -> ServeArgs:
    """The arguments. Raises UserError where they make no configuration."""
    pairs = [text.partition("=") for text in argv]
    bad = [name + equals for name, equals, value in pairs if not (name and equals and value)]
    if bad:
        raise UserError(f"{bad[0]!r}: write field=value, such as models=losnet or config=serving.yaml")
    args = ServeArgs.model_validate({name: value for name, _, value in pairs})
    KeyRing(load_config(args).keys_file)
    return args


def main(argv: Sequence[str]) -> int:
    """Check the configuration, then serve until told to stop; what cannot be used is one line and exit code 2."""
    try:
        args = checked(argv)
        with ray_cluster(log_to_driver=True):
            from stratum_serve.run import serve_until_told  # here: Ray must not be imported before it has a token

            serve_until_told(args)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
