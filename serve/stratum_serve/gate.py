"""What every request passes before any route sees it: an id, the key, the room that is left, its deadline, the bytes that may come.

Plain ASGI, since a framework reads the body before its own dependencies run.
"""

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stratum_serve.config import Limits
from stratum_serve.door import Door
from stratum_serve.keys import Key, KeyRing
from stratum_serve.keys import Scope as KeyScope
from stratum_serve.meters import Meters
from stratum_serve.problems import MEDIA_TYPE, Problem

logger = logging.getLogger("ray.serve")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TIMEOUT = "x-request-timeout-seconds"
LEAD_SECONDS = 1.0
RETRY_SECONDS = 1
OPEN = ("", "/", "/openapi.json", "/healthz", "/readyz")  # paths that everyone may ask for, and what lies below OPEN_FOLDER
OPEN_FOLDER = "/page/"


class Gate:
    """The outermost layer of the application.

    Args:
        behind_proxy: whether something in front puts the id that a request comes with on its answer, as Ray's proxy does.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, limits: Limits, meters: Meters, door: Door, behind_proxy: bool = False) -> None:
        self._app, self._keys, self._limits, self._meters, self._door = app, keys, limits, meters, door
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's start and end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, receive, send, self._limits.body_bytes, behind_proxy=self._behind_proxy)
        try:
            await self._pass(scope, visit)
        except Problem as problem:
            await visit.refuse(problem)
        except Exception:
            logger.exception("request %s failed", visit.request_id)
            await visit.refuse(Problem("internal", "the server failed; its log tells more under this request id"))
        finally:
            self._account(scope, visit)

    async def _pass(self, scope: Scope, visit: "_Visit") -> None:
        if is_open(visit.path):
            await self._app(scope, visit.receive, visit.send)
            return
        key = self._keys.check(visit.headers.get("authorization"), needed_scope(scope["method"], visit.path))
        visit.check_length()
        seconds = seconds_of(visit.headers.get(TIMEOUT), self._limits.seconds)
        scope["state"]["deadline"] = visit.started + seconds
        self._enter(key)
        try:
            await visit.answered_by(self._app, scope, seconds)
        finally:
            self._leave(key)

    def _enter(self, key: Key | None) -> None:
        if self._door.closing:
            raise Problem("stopping", "this server is about to stop: ask again, another server or later", RETRY_SECONDS)
        if self._door.inside >= self._limits.in_flight:
            raise Problem("overload", f"{self._door.inside} requests are under way, as many as are taken: try again later", RETRY_SECONDS)
        self._keys.enter(key)
        self._door.inside += 1
        self._meters.in_flight(self._door.inside)

    def _leave(self, key: Key | None) -> None:
        self._keys.leave(key)
        self._door.inside -= 1
        self._meters.in_flight(self._door.inside)

    def _account(self, scope: Scope, visit: "_Visit") -> None:
        if is_open(visit.path):
            return
        self._meters.request(scope["state"].get("model", ""), visit.status)
        seconds = time.monotonic() - visit.started
        logger.info("request %s %s %s %s %.0f ms", visit.request_id, scope["method"], visit.path, visit.status, 1000 * seconds)


class _Visit:
    """One request: its id, what has been read of it, whether the answer has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int, *, behind_proxy: bool) -> None:
        self.path = get_route_path(scope)  # as the routes see it: without the prefix that the application is mounted under
        self.headers, self.started, self.status = Headers(scope=scope), time.monotonic(), 0
        given = self.headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self._named = behind_proxy and self.request_id == given
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = self.request_id
        self._receive, self._send, self._most, self._read = receive, send, most, 0
        self._timeout: asyncio.Timeout | None = None

    async def answered_by(self, app: ASGIApp, scope: Scope, seconds: float) -> None:
        """Have an application read the body and answer. Raises Problem where the answer has not begun within so many seconds."""
        self._timeout = timeout = asyncio.timeout(seconds)
        try:
            async with timeout:
                await app(scope, self.receive, self.send)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise Problem("deadline", f"there was no answer within {seconds:g} s: allow more, or send a smaller image") from error
        finally:
            self._timeout = None

    def check_length(self) -> None:
        """Refuse what says itself that it is too long."""
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._most:
            raise self._too_long(f"{length} bytes")

    async def receive(self) -> Message:
        """The next part of the body, as long as there are not too many of them."""
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise self._too_long("the body")
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer, which carries the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._timeout is not None:
                self._timeout.reschedule(None)  # what has begun is not cut off
            if not self._named:
                MutableHeaders(scope=message)["X-Request-Id"] = self.request_id
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """The problem as the answer, unless one has begun."""
        if self.status:
            return
        body = json.dumps(problem.document(self.request_id)).encode()
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **problem.headers()}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    def _too_long(self, what: str) -> Problem:
        return Problem("too-many-bytes", f"{what} are more than the {self._most} bytes that are taken: compress the image")


def is_open(path: str) -> bool:
    """Whether everyone may ask for a path, without a key and however much is under way."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


def needed_scope(method: str, path: str) -> KeyScope | None:
    """What a key must be for; None where any key does."""
    if path.startswith("/v1/batches"):
        return "batches"
    return "predict" if method == "POST" else None


def seconds_of(asked: str | None, longest: float) -> float:
    """The seconds until the deadline: as many as a request asks for, less a little, and ``longest`` at most.

    Ray's proxy counts by the same header, and where we are not done first, it answers with a 408 in plain text.

    Raises:
        Problem: it is no number above 0.
    """
    if asked is None:
        return longest
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise Problem("bad-option", f"X-Request-Timeout-Seconds: {asked[:40]!r} is no number of seconds above 0")
    return min(seconds - min(LEAD_SECONDS, seconds / 5), longest)
