"""Images and results on a real S3: only under the allowed prefixes, and each way to fail told apart."""

import json
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from running import until
from serve_tools import Server, Serving, decoded

from stratum import storage
from stratum_serve.outside import THREADS
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


def test_what_is_read_once_is_not_kept(s3_env: object, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    storage.write_bytes(f"s3://{bucket}/five", b"12345")
    storage.write_bytes(str(tmp_path / "five"), b"12345")
    for place in (f"s3://{bucket}", str(tmp_path)):
        assert storage.read_once(f"{place}/five", 5) == b"12345"
        with pytest.raises(storage.TooLargeError, match="5 bytes, 4 are taken"):
            storage.read_once(f"{place}/five", 4)
        with pytest.raises(storage.MissingError):
            storage.read_once(f"{place}/none", 4)
    assert not (tmp_path / "cache").exists()


def test_images_leave_nothing_on_the_disk(made: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    assert made.http.post(SEGMENT, json={"image": f"s3://{bucket}/in/a.png"}).status_code == 200
    assert not (tmp_path / "cache").exists()


def test_what_the_client_cannot_mend_is_not_called_its_mistake(made: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    answer = made.http.post(SEGMENT, json={"image": f"s3://{bucket}/in/a.png"})
    assert kind(answer) == "unavailable"
    assert "no credentials" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 1


def test_a_bucket_is_no_image(serving: Serving, packages: dict[str, Path], bucket: str) -> None:
    made = serving(models=f"losnet={packages['losnet']}", s3_prefixes=[f"s3://{bucket}"])
    made.wait()
    assert kind(made.http.post(SEGMENT, json={"image": f"s3://{bucket}/"})) == "bad-option"


def test_where_s3_hangs_images_in_requests_are_answered(made: Server, bucket: str, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratum_serve.outside.WAIT_SECONDS", 0.5)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert made.http.post(SEGMENT, content=image).status_code == 200
    answers: list[str] = []

    def ask() -> None:
        asked = {"image": f"s3://{bucket}/in/a.png"}
        answers.append(kind(made.http.post(SEGMENT, json=asked, headers={"X-Request-Timeout-Seconds": "40"})))

    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        hung = [threading.Thread(target=ask) for _ in range(THREADS + 2)]
        for thread in hung:
            thread.start()
        until(lambda: len(answers) == 2)  # there is no thread for these: they are not kept waiting
        assert set(answers) == {"overload"}
        for _ in range(3):
            assert made.http.post(SEGMENT, content=image, headers={"X-Request-Timeout-Seconds": "30"}).status_code == 200
        assert len(answers) == 2  # the others still wait for S3
    for thread in hung:  # whose connections are reset with the socket
        thread.join(60)
    assert sorted(answers) == ["overload"] * 2 + ["unavailable"] * THREADS
