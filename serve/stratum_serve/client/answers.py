"""What both clients send, and what they make of what comes back.

Shapes: ``H`` and ``W`` the size of the image.
"""

import email.utils
import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

Image = bytes | str | Path
"""The bytes of an image, the path of a file, or ``s3://bucket/key``, which the server reads."""

AGAIN = (429, 502, 503)  # statuses after which the same request may succeed
PROBLEM = "application/problem+json"
LONGEST_PAUSE = 30.0


class ServerError(Exception):
    """The server's refusal; ``type`` never changes, ``detail`` says what to do."""

    def __init__(self, status: int, type: str, detail: str, request_id: str) -> None:
        super().__init__(f"{detail} (HTTP {status}, request {request_id})")
        self.status, self.type, self.detail, self.request_id = status, type, detail, request_id


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer: JSON, or the bytes of a picture or of NumPy arrays."""

    content: bytes
    media_type: str
    request_id: str
    model: str
    version: str

    def json(self) -> dict[str, Any]:
        """The document, where the answer is one. Raises ValueError where it is not."""
        if self.media_type != "application/json":
            raise ValueError(f"the answer is {self.media_type}, not JSON: ask with format='json'")
        found: dict[str, Any] = json.loads(self.content)
        return found

    def save(self, path: Path | str) -> Path:
        """Write the content to a file."""
        target = Path(path)
        target.write_bytes(self.content)
        return target


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a request is repeated, and how long to wait before."""

    attempts: int = 6
    first_pause: float = 0.25  # seconds; doubled each time, and spread so that clients do not come back together

    def pause(self, attempt: int, answer: httpx.Response | None, *, repeatable: bool = True) -> float | None:
        """Seconds until the next attempt, None where there is none.

        ``answer`` is None where the connection broke. What is not ``repeatable`` is asked again only where it was surely refused.
        """
        if attempt + 1 >= self.attempts or not may_succeed(answer, repeatable=repeatable):
            return None
        asked = _retry_after(answer.headers.get("Retry-After")) if answer is not None else None
        grown = min(self.first_pause * 2.0**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.5)
        return grown if asked is None else min(max(asked, 0.0), LONGEST_PAUSE) + random.uniform(0.0, self.first_pause)


def may_succeed(answer: httpx.Response | None, *, repeatable: bool) -> bool:
    """Whether the same request may succeed later: the server was busy, or it ended in the middle, and says no word of its own then."""
    if answer is None:
        return repeatable
    own = answer.headers.get("content-type", "").startswith(PROBLEM)
    return answer.status_code in AGAIN or (answer.status_code == 500 and not own and repeatable)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, ready to be sent as often as needed."""

    method: str
    path: str
    params: Mapping[str, Any]
    headers: Mapping[str, str]
    content: bytes = b""
    repeatable: bool = True  # changes nothing, or nothing more, when it is asked twice


def image_call(path: str, image: Image, output: str, seconds: float | None, options: Mapping[str, Any]) -> Call:
    """The request for an image; options that are None are left out."""
    headers = {"X-Request-Id": uuid.uuid4().hex, "Content-Type": "application/octet-stream"}  # one id, so that retries can be told
    if seconds is not None:
        headers["X-Request-Timeout-Seconds"] = f"{seconds:g}"
    if isinstance(image, str) and image.startswith("s3://"):
        headers["Content-Type"] = "application/json"
        content = json.dumps({"image": image, **({"output": output} if output else {})}).encode()
    elif output:
        raise ValueError("output is for images on S3: the answer to an image that is sent comes back")
    else:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
    chosen = {name: value for name, value in options.items() if value is not None}
    return Call(method="POST", path=path, params=chosen, headers=headers, content=content)


def get_call(path: str) -> Call:
    """The request for a document."""
    return Call(method="GET", path=path, params={}, headers={"X-Request-Id": uuid.uuid4().hex})


def json_call(method: str, path: str, values: Mapping[str, Any] | None = None) -> Call:
    """A request with a JSON body, or none."""
    headers = {"X-Request-Id": uuid.uuid4().hex, "Content-Type": "application/json"}
    content = b"" if values is None else json.dumps(values).encode()
    return Call(method=method, path=path, params={}, headers=headers, content=content, repeatable=method != "POST")


def model_path(model: str, action: str = "") -> str:
    """The path of a model, or of what it does."""
    return f"/v1/models/{quote(model, safe='@')}{action}"


def pipeline_path(pipeline: str, action: str) -> str:
    """The path of what a pipeline does."""
    return f"/v1/refine/{quote(pipeline, safe='@')}{action}"


def answer_of(response: httpx.Response) -> Answer:
    """The answer. Raises ServerError for a refusal."""
    if response.is_success:
        return Answer(
            content=response.content,
            media_type=response.headers.get("content-type", "").partition(";")[0],
            request_id=response.headers.get("x-request-id", ""),
            model=response.headers.get("x-model", ""),
            version=response.headers.get("x-model-version", ""),
        )
    try:
        problem = response.json()
        problem = problem if isinstance(problem, dict) else {}
    except ValueError:
        problem = {}
    raise ServerError(
        response.status_code,
        str(problem.get("type", "about:blank")),
        str(problem.get("detail", response.reason_phrase)),
        response.headers.get("x-request-id", ""),
    )


def default_headers(key: str) -> dict[str, str]:
    """What goes with every request."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _retry_after(value: str | None) -> float | None:
    """Seconds out of the header, which may hold a date."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
