"""Every way to be refused: its status, its type, a sentence that helps, and the request's id."""

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from serve_tools import Server, Serving, png
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.types import Message

from stratum_models.errors import UserError
from stratum_models.package import WEIGHTS_FILE
from stratum_serve.app import check_open
from stratum_serve.gate import seconds_of
from stratum_serve.http import make_app
from stratum_serve.keys import KeyRing, new_key
from stratum_serve.problems import KINDS, MEDIA_TYPE
from stratum_serve.worker import Answer, Task

SEGMENT = "/v1/models/losnet/segment"


def assert_refused(answer: object, kind: str) -> dict[str, object]:
    status, headers, document = answer.status_code, answer.headers, answer.json()  # type: ignore[attr-defined]
    assert document["type"] == f"urn:stratum:problem:{kind}", document
    assert status == document["status"] == KINDS[kind].status
    assert headers["content-type"] == MEDIA_TYPE
    assert document["title"] == KINDS[kind].title
    assert document["request_id"] == headers["x-request-id"]
    assert "Traceback" not in document["detail"]
    return dict(document)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file with keys: one to predict, one for batches, one that may ask one thing at a time."""
    keys = {"predict": new_key("predict"), "batches": new_key("batches", ("batches",)), "one": new_key("one", concurrency=1)}
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    path.write_text(yaml.safe_dump([entry.model_dump(mode="json") for _, entry in keys.values()]))
    return path, {name: key for name, (key, _) in keys.items()}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Slow:
    """A backend that answers when it is told to."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0

    async def run(self, model_id: str, task: Task) -> Answer:
        self.started += 1
        try:
            await asyncio.sleep(30)
        finally:
            self.ended += 1
        raise AssertionError("nobody waits so long")

    async def refine(self, model_id: str, task: Task) -> Answer:
        return await self.run(model_id, task)

    async def load(self, model_id: str, *, pipeline: bool) -> None:
        return None


def test_no_key_wrong_key_and_no_scope(
    serving: Serving, packages: dict[str, Path], keyed: tuple[Path, dict[str, str]], image: bytes
) -> None:
    path, keys = keyed
    made = serving(models=f"losnet={packages['losnet']}", keys_file=str(path))
    made.wait()  # which needs no key
    assert_refused(made.http.get("/v1/models"), "missing-key")
    assert_refused(made.http.post(SEGMENT, content=image, headers=bearer("nobody")), "wrong-key")
    assert made.http.post(SEGMENT, content=image, headers={"Authorization": f"Basic {keys['predict']}"}).status_code == 401
    assert_refused(made.http.post(SEGMENT, content=image, headers=bearer(keys["batches"])), "missing-scope")
    assert made.http.post(SEGMENT, content=image, headers=bearer(keys["predict"])).status_code == 200
    assert made.http.get("/openapi.json").status_code == made.http.get("/").status_code == 200
    assert made.http.get("/v1/models").headers["www-authenticate"] == "Bearer"


def test_under_a_prefix_keys_and_limits_hold(
    serving: Serving, packages: dict[str, Path], keyed: tuple[Path, dict[str, str]], image: bytes
) -> None:
    path, keys = keyed
    made = serving(models=f"losnet={packages['losnet']}", keys_file=str(path), limits={"body_bytes": 100_000})
    made.wait()
    http = TestClient(made.app, root_path="/plant", raise_server_exceptions=False)
    for closed in ("/plant/v1/models", "/plant/v1", "/plant/other", "/plant//v1/models", "/v1/models"):
        assert_refused(http.get(closed), "missing-key")
    assert_refused(http.get("/plant/v1/batches/1", headers=bearer(keys["predict"])), "missing-scope")
    assert_refused(http.post("/plant" + SEGMENT, content=b"x" * 100_001, headers=bearer(keys["predict"])), "too-many-bytes")
    assert http.get("/plant/v1/models", headers=bearer(keys["predict"])).status_code == 200
    assert http.get("/plant").url.path == "/plant/"  # what the page names is relative to it
    page = http.get("/plant/")
    for place in [*re.findall(r'(?:href|src)="([\w./-]+)"', page.text), "page/draw.js", "openapi.json", "healthz", "readyz"]:
        assert http.get(f"/plant/{place}").status_code == 200, place
    script = http.get("/plant/page/page.js").text
    assert not re.search(r"""["'`]/""", script), "an address that forgets the prefix"
    made.service.door.closing = True
    assert_refused(http.get("/plant/v1/models", headers=bearer(keys["predict"])), "stopping")


def test_a_key_is_revoked_while_the_server_runs(
    serving: Serving, packages: dict[str, Path], keyed: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratum_serve.keys.LOOK_AGAIN_SECONDS", 0.0)
    path = tmp_path / "keys.yaml"
    path.write_text(keyed[0].read_text())
    made = serving(models=f"losnet={packages['losnet']}", keys_file=str(path))
    assert made.http.get("/v1/models", headers=bearer(keyed[1]["predict"])).status_code == 200
    path.write_text(yaml.safe_dump([one for one in yaml.safe_load(path.read_text()) if one["name"] != "predict"]))
    assert_refused(made.http.get("/v1/models", headers=bearer(keyed[1]["predict"])), "wrong-key")
    path.write_text("- {name")  # half-written: what was known holds
    assert made.http.get("/v1/models", headers=bearer(keyed[1]["batches"])).status_code == 200


def test_a_key_may_ask_only_so_much_at_once(
    serving: Serving, packages: dict[str, Path], keyed: tuple[Path, dict[str, str]], image: bytes
) -> None:
    made = serving(models=f"losnet={packages['losnet']}", keys_file=str(keyed[0]), backend=(slow := Slow()))
    made.wait()
    with waiting(made, slow, bearer(keyed[1]["one"])):
        busy = made.http.post(SEGMENT, content=image, headers=bearer(keyed[1]["one"]))
        assert_refused(busy, "key-busy")
        assert int(busy.headers["retry-after"]) >= 1
        assert made.http.get("/v1/models", headers=bearer(keyed[1]["predict"])).status_code == 200


def test_without_keys_only_loopback_is_served(caplog: pytest.LogCaptureFixture) -> None:
    check_open(KeyRing(), "127.0.0.1")
    assert "no API keys" in caplog.text
    for host in ("0.0.0.0", "", "::", "10.0.0.1", "example"):
        with pytest.raises(UserError, match="no API keys are set"):
            check_open(KeyRing(), host)


def test_unknown_models_and_versions(server: Server, image: bytes) -> None:
    unknown = assert_refused(server.http.post("/v1/models/none/segment", content=image), "unknown-model")
    assert "losnet, slag, cells" in str(unknown["detail"])
    assert_refused(server.http.post("/v1/models/-odd-/segment", content=image), "unknown-model")
    assert_refused(server.http.post("/v1/models/losnet@7/segment", content=image), "unknown-version")
    assert_refused(server.http.get("/v1/models/losnet@champion"), "unknown-version")
    assert_refused(server.http.post("/v1/refine/slag/segment", content=image), "unknown-model")
    assert_refused(server.http.get("/v2"), "not-found")
    wrong = server.http.get(SEGMENT)
    assert_refused(wrong, "method-not-allowed")
    assert wrong.headers["allow"] == "POST"


def test_too_many_bytes(serving: Serving, packages: dict[str, Path]) -> None:
    made = serving(models=f"losnet={packages['losnet']}", limits={"body_bytes": 1000})
    made.wait()
    assert_refused(made.http.post(SEGMENT, content=b"x" * 1001), "too-many-bytes")  # told by its length
    assert_refused(made.http.post(SEGMENT, content=(b"x" * 300 for _ in range(9))), "too-many-bytes")  # told by counting
    assert_refused(made.http.post(SEGMENT, files={"image": b"x" * 2000}), "too-many-bytes")


def test_too_many_pixels_frames_and_sides(serving: Serving, packages: dict[str, Path]) -> None:
    made = serving(models=f"losnet={packages['losnet']}", limits={"pixels": 10_000, "side": 500})
    made.wait()
    assert_refused(made.http.post(SEGMENT, content=png(np.zeros((101, 100, 3), np.uint8))), "too-many-pixels")
    assert_refused(made.http.post(SEGMENT, content=png(np.zeros((4, 501, 3), np.uint8))), "too-many-pixels")
    frames = io.BytesIO()
    pages = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    pages[0].save(frames, format="TIFF", save_all=True, append_images=pages[1:])
    assert_refused(made.http.post(SEGMENT, content=frames.getvalue()), "too-many-pixels")
    assert made.http.post(SEGMENT, content=png(np.zeros((100, 100, 3), np.uint8))).status_code == 200


def test_too_large_for_instances(serving: Serving, packages: dict[str, Path], image: bytes) -> None:
    models = [{"name": name, "package": str(packages[name])} for name in ("losnet", "slag")]
    made = serving(models=models, limits={"instance_pixels": 5000})
    made.wait()
    refused = assert_refused(made.http.post(SEGMENT, content=image), "too-many-pixels")
    way_out = re.search(r"max_size=(\d+)", str(refused["detail"]))
    assert way_out is not None
    answer = made.http.post(f"{SEGMENT}?{way_out[0]}", content=image)
    assert answer.status_code == 200
    assert (answer.json()["height"], answer.json()["width"]) == (96, 128)
    assert_refused(made.http.post(f"{SEGMENT}?max_size={int(way_out[1]) + 2}", content=image), "too-many-pixels")
    assert made.http.post("/v1/models/slag/segment", content=image).status_code == 200


@pytest.mark.parametrize(
    "data", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\x00\x01\x00"], ids=["empty", "text", "cut", "gif"]
)
def test_not_an_image(server: Server, data: bytes) -> None:
    assert_refused(server.http.post(SEGMENT, content=data), "not-an-image")


@pytest.mark.parametrize(
    "query",
    ["score=2", "score=x", "format=gif", "tile=64", "max_size=3", "mm_per_px=0", "mm_per_px=nan", "classes=gold", "unknown=1"],
)
def test_bad_options(server: Server, image: bytes, query: str) -> None:
    document = assert_refused(server.http.post(f"{SEGMENT}?{query}", content=image), "bad-option")
    assert query.partition("=")[0] in str(document["detail"])


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/models/slag/segment", "score=0.5"),
        ("/v1/models/slag/segment", "tile=16"),
        ("/v1/models/slag/measure", "mm_per_px=1&tube_diameter_mm=50"),
        ("/v1/models/losnet/measure", "tube_diameter_mm=50"),
        ("/v1/models/slag/measure", "tube_class=pipe"),
    ],
)
def test_options_that_do_not_fit_the_model(server: Server, image: bytes, path: str, query: str) -> None:
    assert_refused(server.http.post(f"{path}?{query}", content=image), "bad-option")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_deadline_that_is_none(server: Server, image: bytes, value: str) -> None:
    assert_refused(server.http.post(SEGMENT, content=image, headers={"X-Request-Timeout-Seconds": value}), "bad-option")


@pytest.mark.parametrize("body", ["{", "[]", '{"image": 1}', '{"image": ""}', '{"image": "s3://b/k", "more": 1}'])
def test_json_that_names_no_image(server: Server, body: str) -> None:
    assert_refused(server.http.post(SEGMENT, content=body, headers={"Content-Type": "application/json"}), "bad-request")


def test_forms_without_a_file(server: Server) -> None:
    assert_refused(server.http.post(SEGMENT, files={"a": (None, "text")}), "bad-request")
    assert_refused(server.http.post(SEGMENT, content=b"--x", headers={"Content-Type": "multipart/form-data"}), "bad-request")


def test_the_deadline_passes(serving: Serving, packages: dict[str, Path], image: bytes) -> None:
    made = serving(models=f"losnet={packages['losnet']}", backend=(slow := Slow()))
    made.wait()
    assert_refused(made.http.post(SEGMENT, content=image, headers={"X-Request-Timeout-Seconds": "0.05"}), "deadline")
    assert (slow.started, slow.ended) == (1, 1)  # nobody goes on computing


def test_the_deadline_passes_while_the_body_comes(server: Server) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(30)
        raise AssertionError("nobody waits so long")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-request-timeout-seconds", b"0.05")]
    scope = {"type": "http", "method": "POST", "path": SEGMENT, "query_string": b"", "headers": headers}
    asyncio.run(server.app(scope, receive, send))
    assert sent[0]["status"] == 504
    assert json.loads(sent[1]["body"])["type"] == "urn:stratum:problem:deadline"


def test_an_answer_that_has_begun_is_not_cut(serving: Serving, packages: dict[str, Path]) -> None:
    made = serving(models=f"losnet={packages['losnet']}")
    made.wait()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.sleep(1.7)
        yield b" and ended"

    made.app.add_api_route("/v1/slow", lambda: StreamingResponse(slowly()))
    assert made.http.get("/v1/slow", headers={"X-Request-Timeout-Seconds": "2"}).text == "begun and ended"


def test_the_id_is_on_the_answer_once(serving: Serving, packages: dict[str, Path]) -> None:
    made = serving(models=f"losnet={packages['losnet']}")
    behind = TestClient(make_app(made.service, KeyRing(), behind_proxy=True))  # where the proxy adds the id that it gives
    assert "x-request-id" not in behind.get("/v1/models", headers={"X-Request-Id": "a-request.1"}).headers
    assert behind.get("/v1/models", headers={"X-Request-Id": "not one of ours"}).headers["x-request-id"] != "not one of ours"


def test_rays_proxy_is_not_first_with_the_deadline() -> None:
    for asked, seconds in (("10", 9.0), ("1", 0.8), ("100", 60.0), (None, 60.0), ("61", 60.0), ("0.1", 0.08)):
        assert seconds_of(asked, 60.0) == pytest.approx(seconds)


def test_overload(serving: Serving, packages: dict[str, Path], image: bytes) -> None:
    made = serving(models=f"losnet={packages['losnet']}", limits={"in_flight": 1}, backend=(slow := Slow()))
    made.wait()
    with waiting(made, slow):
        busy = made.http.post(SEGMENT, content=image)
        assert_refused(busy, "overload")
        assert int(busy.headers["retry-after"]) >= 1
        assert made.http.get("/healthz").status_code == 200


def test_a_model_that_is_broken(serving: Serving, packages: dict[str, Path], tmp_path: Path, image: bytes) -> None:
    import shutil

    folder = Path(shutil.copytree(packages["losnet"], tmp_path / "broken"))
    weights = bytearray((folder / WEIGHTS_FILE).read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(weights)
    made = serving(models=f"losnet={folder}", refresh_seconds=0.1)
    broken = made.http.post(SEGMENT, content=image)
    assert_refused(broken, "model-broken")
    assert "retry-after" in broken.headers
    assert_refused(made.http.get("/readyz"), "not-ready")
    assert "damaged" in made.http.get("/v1/models").json()["models"][0]["note"]
    shutil.copy(packages["losnet"] / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    made.wait()  # it is looked at again
    assert made.http.post(SEGMENT, content=image).status_code == 200


def test_what_nobody_thought_of_shows_no_traceback(serving: Serving, packages: dict[str, Path], image: bytes) -> None:
    class Broken(Slow):
        async def run(self, model_id: str, task: Task) -> Answer:
            raise RuntimeError("secret /path")

    made = serving(models=f"losnet={packages['losnet']}", backend=Broken())
    made.wait()
    answer = made.http.post(SEGMENT, content=image)
    assert_refused(answer, "internal")
    assert "secret" not in answer.text


def waiting(server: Server, slow: Slow, headers: dict[str, str] | None = None) -> "_Waiting":
    """One request that is under way for as long as the context."""
    return _Waiting(
        lambda: server.http.post(
            SEGMENT, content=png(np.zeros((64, 64, 3), np.uint8)), headers={"X-Request-Timeout-Seconds": "3", **(headers or {})}
        ),
        slow,
    )


class _Waiting:
    def __init__(self, ask: Callable[[], object], slow: Slow) -> None:
        import threading

        self._thread, self._slow = threading.Thread(target=ask), slow

    def __enter__(self) -> None:
        before = self._slow.started
        self._thread.start()
        while self._slow.started == before:
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()
