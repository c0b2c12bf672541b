"""Small packages, and the application in this process, without Ray.

What imports Ray is imported by the fixtures: a conftest may be read before the tests' environment is set, which Ray reads at its import.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serve_tools import Server, Serving


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``losnet``, ``slag`` and ``cells``, which has two stages."""
    from serve_tools import make_package

    folder = tmp_path_factory.mktemp("packages")
    return {
        "losnet": make_package(folder / "losnet", "losnet_debug", score_threshold=0.02, metrics={"val/mask_ap50": 0.5}),
        "slag": make_package(folder / "slag", "slag_deeplab_debug"),
        "cells": make_package(folder / "cells", "two_stage_debug", seed=3),
    }


@pytest.fixture(scope="session")
def image() -> bytes:
    """A PNG of 96 x 128 pixels."""
    from serve_tools import picture, png

    return png(picture())


@pytest.fixture
def serving() -> Iterator["Serving"]:
    """Makes servers that end with the test."""
    from serve_tools import start_server

    with ExitStack() as stack:
        yield lambda **values: start_server(stack, **values)


@pytest.fixture(scope="module")
def server(packages: dict[str, Path]) -> Iterator["Server"]:
    """One server for the tests of a module, with all three packages."""
    from serve_tools import start_server

    with ExitStack() as stack:
        made = start_server(stack, models=[{"name": name, "package": str(path)} for name, path in packages.items()])
        made.wait()
        for name in packages:
            assert made.http.get(f"/v1/models/{name}").status_code == 200
        yield made
