"""The asynchronous client.

async with AsyncClient("http://localhost:8000") as stratum:
    found = (await stratum.segment("losnet", "photo.jpg")).json()
"""

import asyncio
from types import TracebackType
from typing import Any, Self

import httpx

from stratum_serve.client.answers import (
    Answer,
    Call,
    Image,
    Retries,
    answer_of,
    default_headers,
    get_call,
    image_call,
    json_call,
    model_path,
    pipeline_path,
)


class AsyncClient:
    """Asks a server, and again where it is busy or a connection breaks.

    Args:
        url: of the server, such as ``http://localhost:8000``.
        key: an API key, where the server asks for one.
        retries: how often a request is repeated.
        timeout: seconds that a connection may be silent.
        transport: another way to the server, for tests.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        retries: Retries | None = None,
        timeout: float = 90.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=default_headers(key), timeout=timeout, transport=transport)
        self._retries = retries or Retries()

    async def segment(self, model: str, image: Image, *, output: str = "", seconds: float | None = None, **options: Any) -> Answer:
        """What a model finds in an image; options are the query parameters. Raises ServerError."""
        return await self._send(image_call(model_path(model, "/segment"), image, output, seconds, options))

    async def measure(self, model: str, image: Image, *, output: str = "", seconds: float | None = None, **options: Any) -> Answer:
        """What a model measures in an image. Raises ServerError."""
        return await self._send(image_call(model_path(model, "/measure"), image, output, seconds, options))

    async def refine(self, pipeline: str, image: Image, *, output: str = "", seconds: float | None = None, **options: Any) -> Answer:
        """What a two-stage pipeline finds in an image. Raises ServerError."""
        return await self._send(image_call(pipeline_path(pipeline, "/segment"), image, output, seconds, options))

    async def measure_refined(
        self, pipeline: str, image: Image, *, output: str = "", seconds: float | None = None, **options: Any
    ) -> Answer:
        """What is measured in an image that a two-stage pipeline has gone through. Raises ServerError."""
        return await self._send(image_call(pipeline_path(pipeline, "/measure"), image, output, seconds, options))

    async def models(self) -> list[dict[str, Any]]:
        """All models that are served. Raises ServerError."""
        found: list[dict[str, Any]] = (await self._send(get_call("/v1/models"))).json()["models"]
        return found

    async def model(self, model: str) -> dict[str, Any]:
        """One model with its figures. Raises ServerError."""
        return (await self._send(get_call(model_path(model)))).json()

    async def start_batch(self, **values: Any) -> dict[str, Any]:
        """Start a batch over images on S3: ``model``, ``data`` or ``images``, ``output`` and options. Raises ServerError."""
        return (await self._send(json_call("POST", "/v1/batches", values))).json()

    async def batch(self, batch: str) -> dict[str, Any]:
        """How far a batch is. Raises ServerError."""
        return (await self._send(get_call(f"/v1/batches/{batch}"))).json()

    async def cancel_batch(self, batch: str) -> dict[str, Any]:
        """End a batch; what is done stays. Raises ServerError."""
        return (await self._send(json_call("DELETE", f"/v1/batches/{batch}"))).json()

    async def resume_batch(self, batch: str) -> dict[str, Any]:
        """Go on with a batch that was cancelled or cut short. Raises ServerError."""
        return (await self._send(json_call("POST", f"/v1/batches/{batch}/resume"))).json()

    async def close(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _send(self, call: Call) -> Answer:
        for attempt in range(self._retries.attempts):
            response = None
            try:
                response = await self._http.request(
                    call.method, call.path, params=dict(call.params), headers=dict(call.headers), content=call.content
                )
            except httpx.TransportError:
                pause = self._retries.pause(attempt, None, repeatable=call.repeatable)
                if pause is None:
                    raise
            else:
                pause = self._retries.pause(attempt, response, repeatable=call.repeatable)
                if pause is None:
                    return answer_of(response)
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")
