"""The routes of batches."""

import asyncio
import time
import uuid
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stratum import storage
from stratum.cluster import ray_is_local
from stratum.inference.classes import window_of
from stratum.inference.work import BatchSpec
from stratum_models.errors import UserError
from stratum_serve.batches import BatchDesk, BatchState, BatchStore, running
from stratum_serve.config import ServeConfig
from stratum_serve.directory import Target
from stratum_serve.documents import COMMON, KEYS, problems
from stratum_serve.names import parse_reference
from stratum_serve.problems import Problem
from stratum_serve.service import Service, allowed

MOST_IMAGES = 10_000  # of a list; a prefix may hold any number
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


class BatchRequest(BaseModel):
    """What a batch is to do."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=201)
    data: str | None = Field(default=None, max_length=2000, description="s3://bucket/prefix/ with images.")
    images: list[str] | None = Field(default=None, min_length=1, max_length=MOST_IMAGES, description="s3://bucket/key of each image.")
    output: str = Field(max_length=2000, description="s3://bucket/prefix/ for the results, in a folder of the batch's own.")
    score: float | None = Field(default=None, ge=0, le=1)
    mm_per_px: float | None = Field(default=None, gt=0, le=1e6)
    window: int | None = Field(default=None, ge=0, le=8192)
    overlays: bool = True

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.images is None):
            raise ValueError("give either data, a prefix, or images, a list")
        return self


class BatchDocument(BaseModel):
    """How far a batch is."""

    model_config = ConfigDict(extra="forbid")

    id: str
    status: Literal["queued", "running", "finished", "failed", "cancelled", "interrupted"]
    model: str
    weights_sha256: str
    output: str
    total: int = Field(description="Images; 0 until they are listed.")
    done: int
    broken: int
    note: str
    created: float = Field(description="Seconds since 1970.")
    updated: float
    manifest: str | None = Field(description="Where the manifest is, once the batch is finished.")


def batch_routes(service: Service) -> APIRouter:
    """``/batches``: start, look, cancel, resume."""
    router = APIRouter()
    config = service.config
    store = BatchStore(config.batches)
    desk = BatchDesk(store, config.batches, config.limits.batches)
    away = (*COMMON, *KEYS, "unavailable")

    @router.post("/batches", status_code=202, responses=problems(*away, "unknown-model", "too-many-bytes"))
    async def start_batch(asked: BatchRequest) -> BatchDocument:
        """Start a batch; it is accepted at once and runs in the background."""
        target = await service.directory.resolve(parse_reference(asked.model))
        return _document(await desk.start(await asyncio.to_thread(_state, asked, target, config)))

    @router.get("/batches/{batch}", responses=problems(*away, "unknown-batch"))
    async def show_batch(batch: Id) -> BatchDocument:
        """How far a batch is."""
        return _document(_known(await desk.look(batch), batch))

    @router.delete("/batches/{batch}", responses=problems(*away, "unknown-batch"))
    async def cancel_batch(batch: Id) -> BatchDocument:
        """End a batch; what is done stays, and it can be resumed."""
        return _document(_known(await desk.cancel(batch), batch))

    @router.post("/batches/{batch}/resume", status_code=202, responses=problems(*away, "unknown-batch", "batch-running"))
    async def resume_batch(batch: Id) -> BatchDocument:
        """Go on with a batch that was cancelled, cut short or failed: no image is done twice."""
        state = _known(await desk.look(batch), batch)
        if not state.over:
            raise running(state)
        return _document(await desk.start(state) if state.status != "finished" else state)

    return router


def _state(asked: BatchRequest, target: Target, config: ServeConfig) -> BatchState:
    """The batch that a request describes, each image once. Raises Problem where a place or an option cannot be used."""
    batch, manifest, prefixes = uuid.uuid4().hex, target.manifest, config.s3_prefixes
    cpus = (0.0 if ray_is_local() else 1.0) if config.batch_cpus is None else config.batch_cpus
    if manifest.task == "semantic" and asked.score is not None:
        raise Problem("bad-option", "score: a model that labels every pixel has no scores: leave it out")
    if manifest.task == "instance" and asked.window:
        raise Problem("bad-option", "window: is for models that label every pixel: leave it out")
    output = storage.join(allowed(asked.output, prefixes), batch)
    images = tuple(dict.fromkeys(allowed(image, prefixes) for image in asked.images or ()))
    try:
        spec = BatchSpec(
            data=allowed(asked.data, prefixes) if asked.data is not None else output,
            storage=output,
            score_threshold=manifest.score_threshold if asked.score is None else asked.score,
            mm_per_px=asked.mm_per_px,
            window=window_of(manifest, asked.window),
            overlays=asked.overlays,
            workers=config.batch_workers,
            cpus=cpus,
            resume=True,
        )
    except UserError as error:
        raise Problem("bad-option", str(error)) from error
    return BatchState(
        id=batch,
        status="queued",
        model=target.name,
        uri=target.uri,
        weights_sha256=manifest.weights_sha256,
        spec=spec,
        images=images,
        created=time.time(),
    )


def _known(state: BatchState | None, batch: str) -> BatchState:
    if state is None:
        raise Problem("unknown-batch", f"there is no batch {batch} here: see the answer of POST /v1/batches for its id")
    return state


def _document(state: BatchState) -> BatchDocument:
    values: dict[str, Any] = {name: getattr(state, name) for name in BatchDocument.model_fields if hasattr(state, name)}
    manifest = storage.join(state.spec.storage, "manifest.json") if state.status == "finished" else None
    return BatchDocument(**values, output=state.spec.storage, manifest=manifest)
