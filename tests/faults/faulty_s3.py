"""A proxy in front of an S3 server that refuses, breaks off and stalls at random, from a fixed seed.

A request is refused before the server sees it, as an overloaded server does (503), or its connection is reset: before the server sees it,
after the server has done what was asked, or in the middle of the answer. Or it stalls; one that its client has given up goes no further.
"""

import asyncio
import io
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from yarl import URL

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
AS_SENT = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")  # headers that aiohttp would add
OWN = {"connection", "keep-alive", "transfer-encoding"}  # headers of one connection, not of the message
HAS_NO_BODY = {204, 304}


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How often what goes wrong, as shares of the requests."""

    refused: float = 0.20
    reset: float = 0.05
    stalled: float = 0.02
    stall_s: float = 4.0


@dataclass(kw_only=True)
class FaultyS3:
    """Where the proxy listens, and what it did."""

    endpoint: str
    done: Counter[str] = field(default_factory=Counter)


class _Proxy:
    def __init__(self, server: str, faults: Faults, seed: int, done: Counter[str]) -> None:
        self._server, self._faults, self._random, self._done = server, faults, random.Random(seed), done

    async def handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._draw()
        self._done["requests"] += 1
        self._done[fault] += 1
        body = await request.read()  # all of it: a refusal in the middle of an upload is another fault
        if fault == "refused":
            return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")
        if fault == "reset before":
            return _reset(request)
        if fault == "stalled":
            await asyncio.sleep(self._faults.stall_s)
            if request.transport is None or request.transport.is_closing():
                self._done["given up"] += 1
                return web.Response()
        return await self._forward(request, body, fault)

    def _draw(self) -> str:
        shares = {"refused": self._faults.refused, "stalled": self._faults.stalled}
        shares |= {f"reset {when}": self._faults.reset / 3 for when in ("before", "after", "inside")}
        kinds, weights = [*shares, "passed"], [*shares.values(), 1 - sum(shares.values())]
        return self._random.choices(kinds, weights)[0]

    async def _forward(self, request: web.Request, body: bytes, fault: str) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in {*OWN, "expect"}]
        url = URL(self._server + request.raw_path, encoded=True)
        try:
            async with request.app[SESSION].request(
                request.method, url, headers=headers, data=io.BytesIO(body) if body else None, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except ClientError:
            return _reset(request)
        if fault == "reset after":
            return _reset(request)
        response = web.StreamResponse(status=answer.status)
        response.headers.extend((name, value) for name, value in answer.headers.items() if name.lower() not in OWN)
        await response.prepare(request)
        if request.method == "HEAD" or answer.status in HAS_NO_BODY:
            return response
        await response.write(content[: len(content) // 2] if fault == "reset inside" else content)
        return _reset(request, response) if fault == "reset inside" else response


SESSION = web.AppKey("session", ClientSession)


def _reset(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


@contextmanager
def faulty_s3(server: str, faults: Faults | None = None, seed: int = 0) -> Iterator[FaultyS3]:
    """A proxy in front of the server at this URL, in a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    made = FaultyS3(endpoint="")
    runner = asyncio.run_coroutine_threadsafe(_start(_Proxy(server, faults or Faults(), seed, made.done), made), loop).result(30)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(_end(runner), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _start(proxy: _Proxy, made: FaultyS3) -> web.AppRunner:
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    app.cleanup_ctx.append(_session)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.endpoint = "http://{}:{}".format(*runner.addresses[0][:2])
    return runner


async def _end(runner: web.AppRunner) -> None:
    await runner.cleanup()
    stalled = asyncio.all_tasks() - {asyncio.current_task()}  # requests whose clients have given up
    for task in stalled:
        task.cancel()
    await asyncio.gather(*stalled, return_exceptions=True)


async def _session(app: web.Application):  # type: ignore[no-untyped-def]
    app[SESSION] = ClientSession(
        auto_decompress=False,
        timeout=ClientTimeout(total=60),
        skip_auto_headers=AS_SENT,
    )
    yield
    await app[SESSION].close()
