"""A soak test's parts, run one after another."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machines import Missing


def run_parts(parts: Mapping[str, Callable[[], dict[str, Any]]], wanted: str, path: Path | None) -> int:
    """Print what the wanted ones (``"a,b"``) found, write it as JSON, and return an exit code: 1 where one broke a promise."""
    found: dict[str, Any] = {}
    broken = False
    for name in wanted.split(","):
        try:
            found[name] = parts[name]()
        except Missing as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except AssertionError as error:
            found[name], broken = {"broken": str(error)}, True
        print(name, json.dumps(found[name]), flush=True)
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return int(broken)
