"""Print the libraries that an image needs, so that they are installed before the code and stay cached when only that changes.

``python requirements.py PYPROJECT EXTRA...``: the project's dependencies and those of the extras, one a line.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirements of a project and of some of its extras. Raises KeyError for an extra that it does not have."""
    project = tomllib.loads(pyproject.read_text())["project"]
    return [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
