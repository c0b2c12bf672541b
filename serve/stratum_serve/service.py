"""What the HTTP routes ask: resolves names, checks places, finds a replica, and follows canaries and shadows."""

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from stratum import storage
from stratum_models.errors import UserError
from stratum_serve.config import ServeConfig
from stratum_serve.directory import Directory, PackageSource, Source, Target
from stratum_serve.door import Door
from stratum_serve.imaging import ImageLimits
from stratum_serve.meters import Meters
from stratum_serve.names import Reference, parse_reference
from stratum_serve.options import CommonOptions
from stratum_serve.problems import Problem
from stratum_serve.worker import Answer, Task, check_image

logger = logging.getLogger("ray.serve")
SHADOWS = 2  # that run at once; more of them are left out


class Backend(Protocol):
    """Where models run."""

    async def run(self, model_id: str, task: Task) -> Answer:
        """The answer to a task. Raises Problem."""
        ...

    async def refine(self, model_id: str, task: Task) -> Answer:
        """The same, by the stages of a pipeline. Raises Problem."""
        ...

    async def load(self, model_id: str, *, pipeline: bool) -> None:
        """Have a model ready. Raises Problem."""
        ...


@dataclass(frozen=True, kw_only=True)
class Order:
    """One request, as HTTP gave it."""

    request_id: str
    deadline: float  # by time.monotonic
    data: bytes = b""
    image: str = ""  # on S3, instead of data
    output: str = ""


class Service:
    """Everything behind the routes of the models."""

    def __init__(self, config: ServeConfig, backend: Backend, source: Source | None = None) -> None:
        self.config, self.backend = config, backend
        self.directory = Directory(config.models, source or PackageSource(), self._load, config.refresh_seconds)
        self.meters, self.door = Meters(), Door()
        limits = config.limits
        self._limits = ImageLimits(pixels=limits.pixels, side=limits.side, frames=limits.frames, instance_pixels=limits.instance_pixels)
        self._refresher: asyncio.Task[None] | None = None
        self._shadows: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to load the models and to follow their aliases."""
        self._refresher = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """End what runs in the background."""
        self.directory.close()
        for task in (self._refresher, *self._shadows):
            if task is not None:
                task.cancel()

    async def answer(
        self, name: str, order: Order, options: CommonOptions, kind: Literal["segment", "measure"], *, refine: bool = False
    ) -> tuple[Answer, Target]:
        """The answer to a request, and who gave it. Raises Problem."""
        started = time.monotonic()
        reference = self._routed(parse_reference(name), order.request_id)
        target = await self.directory.resolve(reference)
        if refine and not (target.pipeline and target.name in self.config.pipelines):
            raise Problem("unknown-model", f"{target.name} is no pipeline here: ask for /v1/models/{target.name}/segment")
        shadow = self._shadow_of(reference, order.request_id)
        task = self._task(order, options, kind, target, compared=shadow is not None)
        if order.data:
            check_image(order.data, task, target.manifest)
        answer = await (self.backend.refine if refine else self.backend.run)(target.model_id, task)
        self.meters.answered(target.name, answer, time.monotonic() - started)
        if shadow is not None and len(self._shadows) < SHADOWS:
            self._ask_shadow(shadow, replace(task, output=""), answer, refine=refine)
        return answer, target

    def _routed(self, reference: Reference, request_id: str) -> Reference:
        """The canary's reference for its share of the requests to a bare name; a repeated request goes the same way."""
        model = self.directory.models.get(reference.name)
        if model is None or model.canary is None or reference.which:
            return reference
        return replace(reference, which=model.canary.to) if _share_of(request_id) < model.canary.share else reference

    def _task(self, order: Order, options: CommonOptions, kind: Literal["segment", "measure"], target: Target, *, compared: bool) -> Task:
        image = self._allowed(order.image) if order.image else ""
        if image and not storage.name(image):
            raise Problem("bad-option", f"image: {image} is a bucket: write s3://bucket/key")
        output = self._allowed(order.output) if order.output else ""
        return Task(
            kind=kind,
            source=image or order.data,
            output=output,
            options=options,
            seconds=order.deadline - time.monotonic(),
            limits=self._limits,
            largest=self.config.limits.body_bytes,
            compared=compared,
            about={"request_id": order.request_id, "model": target.about()},
        )

    def _allowed(self, uri: str) -> str:
        """The URI in normal form. Raises Problem where it is none of S3, or outside the prefixes."""
        return allowed(uri, self.config.s3_prefixes)

    def _shadow_of(self, reference: Reference, request_id: str) -> Reference | None:
        """What is asked the same as a request to a bare name, for a share of the requests."""
        shadow = self.directory.models[reference.name].shadow
        if shadow is None or reference.which or _share_of(f"shadow {request_id}") >= shadow.share:
            return None
        return replace(reference, which=shadow.to)

    def _ask_shadow(self, shadow: Reference, task: Task, answer: Answer, *, refine: bool) -> None:
        """Ask the shadow the same, later; its answer is compared and thrown away."""
        running = asyncio.get_running_loop().create_task(self._compare(shadow, task, answer, refine=refine))
        self._shadows.add(running)
        running.add_done_callback(self._shadows.discard)

    async def _compare(self, reference: Reference, task: Task, answer: Answer, *, refine: bool) -> None:
        request_id = task.about["request_id"]
        try:
            target = await self.directory.resolve(reference)
            other = await (self.backend.refine if refine else self.backend.run)(target.model_id, task)
        except Problem as problem:
            logger.warning("shadow %s of request %s failed: %s", reference, request_id, problem.detail)
            self.meters.shadowed(reference.name, "failed")
            return
        keys = answer.summary.keys() | other.summary.keys()
        differences = {key: round(other.summary.get(key, 0.0) - answer.summary.get(key, 0.0), 4) for key in sorted(keys)}
        self.meters.shadowed(reference.name, "same" if not any(differences.values()) else "differs")
        logger.info("shadow %s version %s of request %s: %s", reference, target.version, request_id, differences)

    async def _load(self, target: Target) -> None:
        await self.backend.load(target.model_id, pipeline=target.name in self.config.pipelines)

    async def _follow(self) -> None:
        while True:
            try:
                await self.directory.refresh()
            except Exception:
                logger.exception("the models could not be looked at again")
            await asyncio.sleep(self.config.refresh_seconds)


def allowed(uri: str, prefixes: tuple[str, ...]) -> str:
    """An S3 URI in normal form, folders without their last slash. Raises Problem where it is none, or under none of the prefixes."""
    if not uri.startswith("s3://"):
        raise Problem("outside-prefixes", f"{uri[:100]!r} is not on S3: only s3://bucket/key is read and written")
    try:
        resolved = storage.resolve(uri)
    except UserError as error:
        raise Problem("bad-option", str(error)) from error
    for prefix in prefixes:
        folder = storage.resolve(prefix)
        if resolved == folder or resolved.startswith(folder + "/"):
            return resolved
    raise Problem("outside-prefixes", f"{resolved} is under none of the prefixes that this server may use: ask for it to be allowed")


def _share_of(text: str) -> float:
    """A number in 0..1 that a text always gives."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
