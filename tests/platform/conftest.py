"""A bucket whose content tests only read, and what every error of the storage looks like."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stratum import storage
from stratum_models.errors import UserError


@pytest.fixture(scope="module")
def shelf(s3: Any) -> str:
    """A bucket for all tests of a module, which leave ``folder/x.bin`` as it is."""
    uri = f"s3://{s3.bucket()}"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3.env.items():
            environment.setenv(name, value)
        storage.write_bytes(f"{uri}/folder/x.bin", b"data" * 50_000)
    return uri


@pytest.fixture
def bucket(shelf: str, s3_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shelf, with a cache of this test's own and two tries for each request."""
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    return shelf


@pytest.fixture
def failure() -> Callable[[Callable[[str], Any], str], storage.StorageError]:
    """Calls something with a URI; gives its error, which must be one line that begins with the URI."""

    def error_of(call: Callable[[str], Any], uri: str) -> storage.StorageError:
        with pytest.raises(UserError) as caught:
            call(uri)
        assert isinstance(caught.value, storage.StorageError)
        assert str(caught.value).startswith(f"{uri}: ")
        assert "\n" not in str(caught.value)
        return caught.value

    return error_of
