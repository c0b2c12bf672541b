"""The client, blocking and asynchronous: what it sends, what it makes of answers, how it repeats."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serve_tools import Server

from stratum_serve.client import AsyncClient, Client, ServerError
from stratum_serve.client.answers import Retries

QUICK = Retries(attempts=4, first_pause=0.001)
Handler = Callable[[httpx.Request], httpx.Response]


def busy_then(*answers: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A server that gives these answers, one after the other."""
    left: Iterator[httpx.Response | Exception] = iter(answers)
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle, seen


def overload(status: int = 429, after: str = "0") -> httpx.Response:
    return httpx.Response(status, headers={"Retry-After": after}, json={"type": "urn:stratum:problem:overload", "detail": "later"})


def good() -> httpx.Response:
    return httpx.Response(200, json={"instances": []}, headers={"X-Model": "losnet", "X-Model-Version": "3"})


def test_it_repeats_what_may_succeed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    handle, seen = busy_then(overload(), httpx.ConnectError("gone"), overload(503), good())
    with Client("http://server", "secret", retries=QUICK, transport=httpx.MockTransport(handle)) as client:
        answer = client.segment("losnet@3", tmp_path / "a.png", seconds=2.5, score=0.5, tile=None)
    assert (answer.model, answer.version, answer.json()) == ("losnet", "3", {"instances": []})
    assert len(seen) == 4
    assert len({request.headers["x-request-id"] for request in seen}) == 1
    first = seen[0]
    assert (first.url.path, dict(first.url.params), first.read()) == ("/v1/models/losnet@3/segment", {"score": "0.5"}, b"image")
    assert first.headers["authorization"] == "Bearer secret"
    assert first.headers["x-request-timeout-seconds"] == "2.5"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422, 500, 504])
def test_it_does_not_repeat_what_stays_wrong(status: int) -> None:
    refusal = overload(status)
    refusal.headers["Content-Type"] = "application/problem+json"
    handle, seen = busy_then(refusal)
    with Client("http://server", retries=QUICK, transport=httpx.MockTransport(handle)) as client, pytest.raises(ServerError, match="later"):
        client.models()
    assert len(seen) == 1


def test_a_server_that_ends_in_the_middle() -> None:
    handle, seen = busy_then(httpx.Response(500, text="Internal Server Error"), good())
    with Client("http://server", retries=QUICK, transport=httpx.MockTransport(handle)) as client:
        assert client.segment("losnet", b"image").model == "losnet"
    assert len(seen) == 2


def test_a_batch_is_not_started_twice() -> None:
    for broken in (httpx.Response(500, text="Internal Server Error"), httpx.ReadError("gone")):
        handle, seen = busy_then(overload(), broken)
        client = Client("http://server", retries=QUICK, transport=httpx.MockTransport(handle))
        with client, pytest.raises((ServerError, httpx.ReadError)):
            client.start_batch(model="losnet", data="s3://b/in", output="s3://b/out")
        assert len(seen) == 2


def test_it_gives_up(tmp_path: Path) -> None:
    handle, seen = busy_then(*[overload() for _ in range(4)])
    with Client("http://server", retries=QUICK, transport=httpx.MockTransport(handle)) as client, pytest.raises(ServerError) as caught:
        client.segment("losnet", b"image")
    assert (caught.value.status, caught.value.type, len(seen)) == (429, "urn:stratum:problem:overload", 4)
    handle, seen = busy_then(*[httpx.ReadError("gone") for _ in range(4)])
    with Client("http://server", retries=QUICK, transport=httpx.MockTransport(handle)) as client, pytest.raises(httpx.ReadError):
        client.segment("losnet", b"image")
    assert len(seen) == 4


def test_pauses_follow_the_server() -> None:
    retries = Retries(attempts=3, first_pause=0.5)
    assert 2.0 <= (retries.pause(0, overload(after="2")) or 0) <= 2.5
    assert 30.0 <= (retries.pause(0, overload(after="900")) or 0) <= 30.5
    grown = [retries.pause(attempt, None) or 0 for attempt in range(2)]
    assert 0.25 <= grown[0] <= 0.75
    assert 0.5 <= grown[1] <= 1.5
    assert retries.pause(2, overload()) is None
    assert (retries.pause(0, overload(after="Wed, 21 Oct 2015 07:28:00 GMT")) or 0) <= 0.5


def test_refusals_that_are_no_json() -> None:
    handle, _ = busy_then(httpx.Response(404, text="<html>"))
    with Client("http://server", transport=httpx.MockTransport(handle)) as client, pytest.raises(ServerError, match="Not Found"):
        client.model("losnet")


def test_output_is_for_s3() -> None:
    handle, seen = busy_then(good())
    with Client("http://server", transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(ValueError, match="S3"):
            client.segment("losnet", b"image", output="s3://b/out")
        client.segment("losnet", "s3://b/a.png", output="s3://b/out")
    assert seen[0].read() == b'{"image": "s3://b/a.png", "output": "s3://b/out"}'


def test_both_clients_against_the_application(server: Server, image: bytes) -> None:
    async def main() -> list[object]:
        async with AsyncClient("http://server", transport=httpx.ASGITransport(server.app)) as client:
            found = await client.segment("losnet", image)
            assert (await client.measure("losnet", image, mm_per_px=0.5)).json()["sizes"]["unit"] == "mm"
            assert [one["name"] for one in await client.models()] == ["losnet", "slag", "cells"]
            assert (await client.model("slag"))["task"] == "semantic"
            refined = (await client.refine("cells", image, patches=2)).json()
            assert len(refined["refined"]["patches"]) == 2
            measured = (await client.measure_refined("cells", image, patches=2)).json()
            assert [one["area_px"] for one in measured["areas"]] == [one["pixels"] for one in refined["classes"]]
            with pytest.raises(ServerError, match="no model"):
                await client.segment("none", image)
            return list(found.json()["instances"])

    instances = asyncio.run(main())
    assert instances == server.http.post("/v1/models/losnet/segment", content=image).json()["instances"]
