"""What a client can be told is wrong: problem details (RFC 9457) with a type that never changes."""

from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "application/problem+json"
PREFIX = "urn:stratum:problem:"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A sort of problem: its HTTP status, and its title, which is the same each time."""

    status: int
    title: str


KINDS = {
    "bad-request": Kind(status=400, title="The request cannot be read"),
    "missing-key": Kind(status=401, title="An API key is needed"),
    "wrong-key": Kind(status=401, title="The API key is not valid"),
    "missing-scope": Kind(status=403, title="The API key may not do this"),
    "outside-prefixes": Kind(status=403, title="The S3 location is not allowed"),
    "s3-denied": Kind(status=403, title="S3 denies access"),
    "not-found": Kind(status=404, title="There is nothing at this address"),
    "unknown-model": Kind(status=404, title="There is no such model"),
    "unknown-version": Kind(status=404, title="The model has no such version or alias"),
    "unknown-batch": Kind(status=404, title="There is no such batch"),
    "s3-missing": Kind(status=404, title="There is no such object on S3"),
    "method-not-allowed": Kind(status=405, title="The method is not allowed here"),
    "batch-running": Kind(status=409, title="The batch is running"),
    "too-many-bytes": Kind(status=413, title="The body is too large"),
    "too-many-pixels": Kind(status=413, title="The image has too many pixels"),
    "not-an-image": Kind(status=415, title="This is not an image that can be read"),
    "bad-option": Kind(status=422, title="An option cannot be used"),
    "overload": Kind(status=429, title="The server has too much to do"),
    "key-busy": Kind(status=429, title="The API key has too many requests under way"),
    "internal": Kind(status=500, title="The server failed"),
    "model-broken": Kind(status=503, title="The model cannot be loaded"),
    "not-ready": Kind(status=503, title="No model answers yet"),
    "stopping": Kind(status=503, title="The server is about to stop"),
    "unavailable": Kind(status=503, title="Something that the answer needs is away"),
    "deadline": Kind(status=504, title="The deadline has passed"),
}


class Problem(Exception):
    """A request that cannot be answered, and why; travels between processes.

    Args:
        kind: one of :data:`KINDS`.
        detail: one sentence that names what was found and the fix.
        retry_after: seconds after which the same request may succeed, None where it will not.
    """

    def __init__(self, kind: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(kind, detail, retry_after)
        self.kind, self.detail, self.retry_after = kind, detail, retry_after

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind].status

    def document(self, request_id: str) -> dict[str, Any]:
        """The body of the answer."""
        kind = KINDS[self.kind]
        return {"type": PREFIX + self.kind, "title": kind.title, "status": kind.status, "detail": self.detail, "request_id": request_id}

    def headers(self) -> dict[str, str]:
        """What the answer's headers say beside the request id."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.kind == "stopping":
            headers["Connection"] = "close"
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
