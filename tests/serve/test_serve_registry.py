"""From the registry to the answer: versions, aliases, promotion and roll-back, canaries and shadows, with a real store."""

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serve_tools import Server, Serving, make_package

from stratum.registry import log_package
from stratum.tracking import client_for, open_run
from stratum_models.package import WEIGHTS_FILE
from stratum_serve.local import LocalBackend
from stratum_serve.problems import KINDS, Problem

Register = Callable[[int], str]


@pytest.fixture
def register(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a package of random weights as the next version of ``ore``, and gives back its number."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def register(seed: int) -> str:
        folder = make_package(tmp_path / f"package-{seed}", "losnet_debug", seed=seed, score_threshold=0.02)
        with open_run("serving", f"train-{seed}") as run:
            return log_package(run.run_id, folder, "ore").rpartition("/")[2]

    return register


@pytest.fixture
def alias(mlflow_sqlite: str) -> Callable[[str, str], None]:
    return lambda name, version: client_for(mlflow_sqlite).set_registered_model_alias("ore", name, version)


def version(server: Server, image: bytes, model: str = "ore") -> str:
    answer = server.http.post(f"/v1/models/{model}/segment", content=image)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"]["version"] == answer.headers["x-model-version"]
    return str(answer.headers["x-model-version"])


def until(wanted: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_promotion_and_roll_back(serving: Serving, register: Register, alias: Callable[[str, str], None], image: bytes) -> None:
    first, second = register(1), register(2)
    alias("champion", first)
    alias("next", second)
    made = serving(models="ore", refresh_seconds=0.05)
    made.wait()
    assert version(made, image) == first
    assert version(made, image, "ore@next") == version(made, image, f"ore@{second}") == second
    assert version(made, image, "ore@champion") == first
    alias("champion", second)
    until(lambda: version(made, image) == second)
    assert made.http.get("/v1/models/ore").json()["aliases"] == ["champion", "next"]
    alias("champion", first)
    until(lambda: version(made, image) == first)
    assert version(made, image, f"ore@{second}") == second


def test_a_version_that_does_not_load_never_goes_live(
    serving: Serving, register: Register, alias: Callable[[str, str], None], image: bytes, mlflow_sqlite: str
) -> None:
    first, second = register(1), register(2)
    alias("champion", first)
    made = serving(models="ore", refresh_seconds=0.05)
    made.wait()
    source = Path(client_for(mlflow_sqlite).get_model_version_download_uri("ore", second).removeprefix("file://"))
    (weights,) = source.rglob(WEIGHTS_FILE)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    alias("champion", second)
    until(lambda: made.http.get("/v1/models/ore").json()["note"] != "")
    assert "damaged" in made.http.get("/v1/models/ore").json()["note"]
    assert version(made, image) == first
    answer = made.http.post(f"/v1/models/ore@{second}/segment", content=image)
    assert (answer.status_code, answer.json()["type"]) == (KINDS["model-broken"].status, "urn:stratum:problem:model-broken")


def test_what_is_not_registered(serving: Serving, register: Register, alias: Callable[[str, str], None], image: bytes) -> None:
    alias("champion", register(1))
    made = serving(models="ore,nothing", refresh_seconds=60)
    made.wait()
    for name, kind in (
        ("ore@9", "unknown-version"),
        ("ore@best", "unknown-version"),
        ("nothing", "unknown-model"),
        ("other", "unknown-model"),
    ):
        answer = made.http.post(f"/v1/models/{name}/segment", content=image)
        assert (answer.status_code, answer.json()["type"]) == (404, f"urn:stratum:problem:{kind}"), answer.text


def test_a_registry_that_goes_away_changes_nothing(
    serving: Serving,
    register: Register,
    alias: Callable[[str, str], None],
    image: bytes,
    mlflow_sqlite: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alias("champion", first := register(1))
    made = serving(models="ore", refresh_seconds=0.05)
    made.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    until(lambda: "cannot be reached" in made.http.get("/v1/models/ore").json()["note"])
    assert version(made, image) == first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_sqlite)
    until(lambda: made.http.get("/v1/models/ore").json()["note"] == "")


def test_the_same_weights_with_another_threshold_go_live(serving: Serving, tmp_path: Path, image: bytes) -> None:
    """What lies in one place is changed there, as costs and thresholds are."""
    folder = make_package(tmp_path / "package", "losnet_debug", seed=1, score_threshold=0.02)
    made = serving(models=f"ore={folder}", refresh_seconds=0.05)
    made.wait()
    found = made.http.post("/v1/models/ore/segment", content=image).json()
    assert found["instances"]
    make_package(folder, "losnet_debug", seed=1, score_threshold=1.0)
    until(lambda: made.http.post("/v1/models/ore/segment", content=image).json()["instances"] == [])
    assert made.http.get("/v1/models/ore").json()["weights_sha256"] == found["model"]["weights_sha256"]


def test_a_replica_that_starts_while_the_registry_is_away_has_what_was_fetched(
    serving: Serving, register: Register, alias: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    alias("champion", register(1))
    made = serving(models="ore", refresh_seconds=60)
    made.wait()
    target, _ = made.service.directory.live("ore")
    assert target is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    new = LocalBackend(made.config)
    asyncio.run(new.load(target.model_id, pipeline=False))
    with pytest.raises(Problem, match="cannot be reached"):
        asyncio.run(new.load(target.uri + "#" + "0" * 64, pipeline=False))
    new.close()


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_canary_gets_its_share(serving: Serving, register: Register, alias: Callable[[str, str], None], image: bytes) -> None:
    first, second = register(1), register(2)
    alias("champion", first)
    alias("next", second)
    made = serving(models=[{"name": "ore", "canary": {"to": "next", "share": 0.4}}], refresh_seconds=60)
    made.wait()

    def asked(number: int) -> str:
        answer = made.http.post("/v1/models/ore/segment?format=png", content=image, headers={"X-Request-Id": f"request-{number}"})
        return str(answer.headers["x-model-version"])

    seen = [asked(number) for number in range(40)]
    assert 6 <= seen.count(second) <= 26
    assert [asked(number) for number in range(5)] == seen[:5]  # a repeated request goes the same way
    assert {version(made, image, "ore@champion") for _ in range(5)} == {first}


def test_a_shadow_is_compared_and_never_returned(
    serving: Serving, register: Register, alias: Callable[[str, str], None], image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = register(1), register(2)
    alias("champion", first)
    alias("next", second)
    made = serving(models=[{"name": "ore", "shadow": {"to": "next", "share": 1.0}}], refresh_seconds=60)
    made.wait()
    with caplog.at_level("INFO", logger="ray.serve"):
        assert {version(made, image) for _ in range(3)} == {first}
        until(lambda: f"shadow ore@next version {second}" in caplog.text)
    assert "'instances'" in caplog.text
