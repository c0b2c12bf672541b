"""An S3 server in this process that notes which rights each request needs, whichever library sends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "BUCKET"  # as the policies name it


@dataclass(frozen=True, kw_only=True, order=True)
class Need:
    """One right: an action on an ARN, for listings with their prefix (None where the request names none)."""

    action: str
    resource: str
    prefix: str | None = None


@dataclass(kw_only=True)
class Recorder:
    """The server's notes."""

    endpoint: str = ""
    needs: set[Need] = field(default_factory=set)

    def note(self, environ: dict[str, Any], body: bytes) -> None:
        """Add what a request needs."""
        _, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        place = f"arn:aws:s3:::{BUCKET}"
        if not key:
            self._bucket(environ["REQUEST_METHOD"], query, place, body)
        else:
            self.needs.add(Need(action=object_action(environ["REQUEST_METHOD"], query), resource=f"{place}/{key}"))
            if "HTTP_X_AMZ_COPY_SOURCE" in environ:
                source = unquote(environ["HTTP_X_AMZ_COPY_SOURCE"]).lstrip("/").partition("/")[2]
                self.needs.add(Need(action="s3:GetObject", resource=f"{place}/{source}"))

    def _bucket(self, method: str, query: dict[str, str], place: str, body: bytes) -> None:
        if "delete" in query:
            keys = [one.text for one in ElementTree.fromstring(body).iter() if one.tag.endswith("Key")]
            self.needs |= {Need(action="s3:DeleteObject", resource=f"{place}/{key}") for key in keys}
        elif method == "PUT":
            self.needs.add(Need(action="s3:CreateBucket", resource=place))
        elif "location" in query:
            self.needs.add(Need(action="s3:GetBucketLocation", resource=place))
        else:
            self.needs.add(Need(action="s3:ListBucket", resource=place, prefix=query.get("prefix") if method == "GET" else None))


def object_action(method: str, query: dict[str, str]) -> str:
    """The action that AWS checks for a request on an object."""
    if method == "DELETE":
        return "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    if method in ("GET", "HEAD"):
        return "s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject"
    return "s3:PutObject"


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def recording() -> Iterator[Recorder]:
    """A server with a bucket ``stratum`` and notes of what comes after."""
    import io

    recorder, inner = Recorder(), DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        body = b""
        if environ["REQUEST_METHOD"] == "POST" and environ.get("CONTENT_LENGTH"):
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(body)
        if not environ["PATH_INFO"].startswith("/moto-api"):
            recorder.note(environ, body)
        return inner(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    recorder.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield recorder
    server.shutdown()
    thread.join()
    server.server_close()
