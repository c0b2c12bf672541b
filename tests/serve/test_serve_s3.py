"""Images and results on a real S3: only under the allowed prefixes, and each way to fail told apart."""

import io
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serve_tools import Server, Serving, decoded

from stratum import storage
from stratum_models.errors import UserError
from stratum_serve.problems import KINDS, Problem
from stratum_serve.service import allowed

SEGMENT = "/v1/models/losnet/segment"


@pytest.fixture
def bucket(s3_env: object, image: bytes) -> str:
    name = s3_env.bucket()  # type: ignore[attr-defined]
    storage.write_bytes(f"s3://{name}/in/a.png", image)
    return str(name)


@pytest.fixture
def made(serving: Serving, packages: dict[str, Path], bucket: str) -> Server:
    prefixes = [f"s3://{bucket}/in", f"s3://{bucket}/out/"]
    server = serving(models=f"losnet={packages['losnet']}", s3_prefixes=prefixes, limits={"body_bytes": 200_000})
    server.wait()
    return server


def kind(answer: object) -> str:
    document = answer.json()  # type: ignore[attr-defined]
    name = str(document["type"]).removeprefix("urn:stratum:problem:")
    assert answer.status_code == KINDS[name].status  # type: ignore[attr-defined]
    return name


def test_an_image_is_read_and_its_answer_stored(made: Server, bucket: str, image: bytes) -> None:
    there = made.http.post(SEGMENT, json={"image": f"s3://{bucket}/in/a.png"}).json()
    assert there["instances"] == made.http.post(SEGMENT, content=image).json()["instances"]
    for format, suffix in (("json", ".json"), ("png", ".png")):
        stored = made.http.post(
            f"{SEGMENT}?format={format}", json={"image": f"s3://{bucket}/in/a.png", "output": f"s3://{bucket}/out/x/"}
        ).json()
        assert stored["output"] == f"s3://{bucket}/out/x/a{suffix}"
        content = storage.read_bytes(stored["output"])
        assert len(content) == stored["bytes"]
        if format == "json":
            assert json.loads(content)["instances"] == there["instances"]
        else:
            assert decoded(content).shape == (96, 128)


def test_what_may_not_be_read_or_written(made: Server, bucket: str) -> None:
    inside = f"s3://{bucket}/in/a.png"
    for place in (
        f"s3://{bucket}/other/a.png",
        f"s3://{bucket}/in/../other/a.png",
        f"s3://{bucket}/inside/a.png",
        "s3://elsewhere/in/a.png",
    ):
        assert kind(made.http.post(SEGMENT, json={"image": place})) == "outside-prefixes"
        assert kind(made.http.post(SEGMENT, json={"image": inside, "output": place})) == "outside-prefixes"
    for place in ("/etc/passwd", "file:///etc/passwd", "http://169.254.169.254/", "synthetic://ore?images=1", "S3://x/y"):
        assert kind(made.http.post(SEGMENT, json={"image": place})) == "outside-prefixes"


def test_objects_that_are_missing_too_large_or_no_image(made: Server, bucket: str) -> None:
    storage.write_bytes(f"s3://{bucket}/in/large.png", b"x" * 200_001)
    storage.write_bytes(f"s3://{bucket}/in/text.png", b"no image")
    assert kind(made.http.post(SEGMENT, json={"image": f"s3://{bucket}/in/none.png"})) == "s3-missing"
    assert kind(made.http.post(SEGMENT, json={"image": f"s3://{bucket}/in/large.png"})) == "too-many-bytes"
    assert kind(made.http.post(SEGMENT, json={"image": f"s3://{bucket}/in/text.png"})) == "not-an-image"


def test_s3_that_denies_and_s3_that_is_away(
    made: Server, real_s3: None, bucket: str, monkeypatch: pytest.MonkeyPatch, s3_env: object
) -> None:
    asked = {"image": f"s3://{bucket}/in/a.png"}
    assert made.http.post(SEGMENT, json=asked).status_code == 200
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test:reader")
        assert kind(made.http.post(SEGMENT, json=asked)) == "s3-denied"
    with monkeypatch.context() as patch:
        port = urlsplit(s3_env.endpoint).port or 0  # type: ignore[attr-defined]
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port - 1 if port > 1024 else 1}")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        away = made.http.post(SEGMENT, json=asked, headers={"X-Request-Timeout-Seconds": "1"})
        assert kind(away) in ("unavailable", "deadline")


def test_prefixes_are_whole_folders() -> None:
    assert allowed("s3://bucket/a/b//c.png", ("s3://bucket/a",)) == "s3://bucket/a/b/c.png"
    assert allowed("s3://bucket/x", ("s3://bucket",)) == "s3://bucket/x"
    for uri in ("s3://bucket/ab/c", "s3://bucket-2/a/c", "https://bucket/a/c", "a/c"):
        with pytest.raises(Problem) as caught:
            allowed(uri, ("s3://bucket/a",))
        assert caught.value.kind == "outside-prefixes"
    with pytest.raises(Problem):
        allowed("s3://bucket/a", ())


def test_sizes_without_reading(s3_env: object, bucket: str, tmp_path: Path) -> None:
    storage.write_bytes(f"s3://{bucket}/five", b"12345")
    assert storage.size(f"s3://{bucket}/five") == 5
    storage.write_bytes(str(tmp_path / "six"), b"123456")
    assert storage.size(str(tmp_path / "six")) == 6
    for missing in (f"s3://{bucket}/none", str(tmp_path / "none")):
        with pytest.raises(UserError):
            storage.size(missing)
    assert io.BytesIO(storage.read_bytes(f"s3://{bucket}/five")).read() == b"12345"
