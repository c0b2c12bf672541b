"""What S3 refuses, and settings that make no sense: one line each, which names the URI, the cause and the fix."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stratum import storage
from stratum.storage.client import client
from stratum_models.errors import UserError

Failure = Callable[[Callable[[str], Any], str], storage.StorageError]

CALLS: tuple[Callable[[str], Any], ...] = (
    storage.read_bytes,
    storage.fetch,
    lambda uri: storage.write_bytes(uri, b"x"),
    storage.list_files,
    storage.fetch_tree,
    storage.ray_filesystem,
)


def test_a_missing_bucket_is_named(failure: Failure, bucket: str) -> None:
    for call in CALLS:
        error = failure(call, f"{bucket}-typo/folder/x.bin")
        assert isinstance(error, storage.MissingError)
        assert "the bucket does not exist; create it or correct its name" in str(error)
    assert not storage.exists(f"{bucket}-typo/folder/x.bin")


def test_a_missing_object_is_named(failure: Failure, bucket: str) -> None:
    assert "there is no such object" in str(failure(storage.read_bytes, f"{bucket}/folder/y.bin"))
    assert "there is nothing under this name" in str(failure(storage.list_files, f"{bucket}/folder/y"))
    assert "this is an object, not a folder" in str(failure(storage.fetch_tree, f"{bucket}/folder/x.bin"))
    assert "this names a folder, not an object" in str(failure(storage.read_bytes, f"{bucket}/folder/"))
    assert "this names a folder, not an object" in str(failure(lambda uri: storage.write_bytes(uri, b"x"), bucket))
    assert not storage.exists(f"{bucket}/folder/y.bin")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_ACCESS_KEY_ID", "test:reader", "access denied; ask for the right"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "the secret key is wrong; correct AWS_SECRET_ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", None, "Partial credentials found .* set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("AWS_PROFILE", "nobody", r"profile \(nobody\) could not be found; correct AWS_PROFILE"),
    ],
    ids=["denied", "wrong-secret", "half-credentials", "no-profile"],
)
@pytest.mark.usefixtures("real_s3")
def test_refusals_say_what_to_set(
    failure: Failure, bucket: str, variable: str, value: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    for call in CALLS:
        assert re.search(says, str(failure(call, f"{bucket}/folder/x.bin")))


def test_without_credentials_the_variables_are_named(failure: Failure, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        if variable not in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(variable)
    for call in CALLS:
        error = failure(call, f"{bucket}/folder/x.bin")
        assert "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in str(error)


@pytest.mark.usefixtures("real_s3")
def test_what_one_may_not_do_does_not_look_like_what_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:reader")
    with pytest.raises(storage.StorageError, match="access denied"):
        storage.exists(f"{bucket}/folder/x.bin")


@pytest.mark.usefixtures("real_s3")
def test_a_copy_in_the_cache_is_no_way_around_a_refusal(failure: Failure, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.fetch(f"{bucket}/folder/x.bin")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:reader")
    assert "access denied" in str(failure(storage.read_bytes, f"{bucket}/folder/x.bin"))


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "Invalid endpoint: 127.0.0.1:9000; correct AWS_ENDPOINT_URL"),
        ("AWS_MAX_ATTEMPTS", "0", "AWS_MAX_ATTEMPTS is '0'; set it to a whole number above 0"),
        ("AWS_RETRY_MODE", "often", "AWS_RETRY_MODE is 'often'; set it to standard or adaptive"),
    ],
)
def test_settings_that_make_no_sense_are_named(bucket: str, variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=says):
        storage.read_bytes(f"{bucket}/folder/x.bin")


def test_the_adaptive_mode_is_taken_over(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, expected in ((None, "standard"), ("standard", "standard"), ("adaptive", "adaptive")):
        if mode is not None:
            monkeypatch.setenv("AWS_RETRY_MODE", mode)
        config: Any = client().meta.config
        assert config.retries == {"mode": expected, "total_max_attempts": 2}
    assert storage.exists(f"{bucket}/folder/x.bin")


def test_an_upload_of_a_missing_file_names_the_file(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(storage.MissingError, match=r"nowhere\.bin: there is no such file"):
        storage.upload_file(tmp_path / "nowhere.bin", f"{bucket}/x")
