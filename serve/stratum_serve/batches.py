"""Batches: many images on S3, predicted by Ray Data in the background, in an actor that outlives the request and the replica.

What is known of a batch is a JSON file in a folder of the server's, so that any ingress replica can answer for it; the images that are done
have records beside their results (:mod:`stratum.inference.records`), so that a batch that was cut short goes on where it was.
"""

import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import platformdirs
import ray
import ray.util
from ray.exceptions import ActorAlreadyExistsError

from stratum import storage
from stratum.cluster import forwarded_environment
from stratum.inference.batch import list_work, predict_all
from stratum.inference.instances import InstanceResults
from stratum.inference.masks import MaskResults
from stratum.inference.outputs import output_names
from stratum.inference.work import BatchSpec, Found, Work
from stratum.registry import fetch_package
from stratum.storage.parallel import in_parallel
from stratum_models.errors import UserError
from stratum_models.package import load_manifest
from stratum_serve.problems import Problem

T = TypeVar("T")
Status = Literal["queued", "running", "finished", "failed", "cancelled", "interrupted"]
NAMESPACE = "stratum-batches"
KEPT = 1000  # batches that are remembered
RETRY_SECONDS = 30
ENDING_SECONDS = 5.0  # that an actor may take to end
NOTE_SECONDS = 1.0  # between two updates of what is known
SILENT_SECONDS = 30.0  # after which a batch that says it is queued, but has no actor, was cut short
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """What is known of a batch."""

    id: str
    status: Status
    model: str
    uri: str  # of the package
    weights_sha256: str
    spec: BatchSpec
    images: tuple[str, ...] = ()  # of a list; empty where a prefix is listed
    total: int = 0
    done: int = 0
    broken: int = 0
    note: str = ""
    created: float = 0.0  # seconds since 1970
    updated: float = 0.0

    def to_json(self) -> str:
        """All fields as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "BatchState":
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "spec": BatchSpec(**values["spec"]), "images": tuple(values["images"])})

    @property
    def over(self) -> bool:
        """Whether nothing works on it any more."""
        return self.status not in ("queued", "running")


class BatchStore:
    """The files that remember batches."""

    def __init__(self, folder: str = "") -> None:
        self._folder = storage.resolve(folder or str(platformdirs.user_data_path("stratum") / "batches"))

    def read(self, batch: str) -> BatchState | None:
        """What is known of a batch, None where there is none of this id."""
        try:
            return BatchState.from_json(storage.read_once(self._uri(batch)).decode())
        except storage.MissingError:
            return None

    def write(self, state: BatchState) -> None:
        """Remember a batch."""
        storage.write_bytes(self._uri(state.id), replace(state, updated=time.time()).to_json().encode())

    def prune(self, running: Collection[str]) -> None:
        """Forget the oldest batches, but none of those that run, where there are more than may be kept."""
        uris = storage.list_files(self._folder, {".json"})
        if len(uris) <= KEPT:
            return
        ages = sorted((state.created if state else 0.0, uri) for uri, state in zip(uris, in_parallel(_known, uris), strict=True))
        over = [uri for _, uri in ages if storage.name(uri).removesuffix(".json") not in running]
        in_parallel(storage.remove_tree, over[: len(uris) - KEPT + KEPT // 10])  # some more, so that it is not done for each batch

    def _uri(self, batch: str) -> str:
        return storage.join(self._folder, f"{batch}.json")


def _known(uri: str) -> BatchState | None:
    """What a file says of a batch; None where it says nothing that makes sense."""
    try:
        return BatchState.from_json(storage.read_once(uri).decode())
    except (storage.MissingError, ValueError, TypeError, KeyError, AttributeError):
        return None


def works_of(state: BatchState) -> list[Work]:
    """The images of a batch. Raises UserError where there are none."""
    if not state.images:
        return list_work(state.spec)
    names = output_names([image.removeprefix("s3://") for image in state.images])
    return [Work(index=index, uri=image, name=names[image.removeprefix("s3://")]) for index, image in enumerate(state.images)]


class BatchRunner:
    """The actor: does one batch and ends."""

    def __init__(self, folder: str) -> None:
        self._store = BatchStore(folder)

    def run(self, batch: str) -> None:
        """Do what is left of a batch."""
        state = self._store.read(batch)
        assert state is not None
        try:
            with suppress(UserError):
                self._store.prune(_running())
            self._store.write(self._done(replace(state, status="running", note="")))
        except Exception as error:
            note = " ".join(str(error).split())[:500] if isinstance(error, UserError) else f"{type(error).__name__}: see the actor's log"
            known = self._store.read(batch) or state
            self._store.write(replace(known, status="failed", note=note))
            if not isinstance(error, UserError):
                logger.exception("batch %s failed", batch)
        finally:
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    def _done(self, state: BatchState) -> BatchState:
        works = works_of(state)
        state = replace(state, total=len(works))
        self._store.write(replace(state, note=_waits(state.spec)))
        package = fetch_package(state.uri)
        manifest = load_manifest(package)
        if manifest.weights_sha256 != state.weights_sha256:
            raise UserError(f"{state.uri}: its weights have changed since the batch was started: start another")
        found = predict_all(package, state.spec, works, each=self._follow(state))
        results = (InstanceResults if manifest.task == "instance" else MaskResults)(found, manifest, state.spec)
        with tempfile.TemporaryDirectory() as scratch:
            results.write(Path(scratch))
            (Path(scratch) / MANIFEST).write_text(json.dumps(manifest_of(state, found), indent=2) + "\n")
            storage.upload_tree(Path(scratch), state.spec.storage, last=(MANIFEST,))
        broken = sum(1 for one in found if one.error)
        return replace(state, status="finished", done=len(found) - broken, broken=broken)

    def _follow(self, state: BatchState) -> Any:
        """What hears of each image, and notes from time to time how far the batch is."""
        done = broken = 0
        spoke = 0.0

        def heard(one: Found) -> None:
            nonlocal done, broken, spoke
            done, broken = done + (not one.error), broken + bool(one.error)
            if time.monotonic() - spoke >= NOTE_SECONDS:
                spoke = time.monotonic()
                self._store.write(replace(state, done=done, broken=broken))

        return heard


def manifest_of(state: BatchState, found: Sequence[Found]) -> dict[str, Any]:
    """Every image of a batch, with where its results are or why there are none."""
    images = []
    for one in found:
        entry: dict[str, Any] = {"image": one.work.uri}
        if one.error:
            entry["error"] = one.error
        else:
            entry["mask"] = storage.join(state.spec.storage, "masks", f"{one.work.name}.png")
            if state.spec.overlays:
                entry["overlay"] = storage.join(state.spec.storage, "overlays", f"{one.work.name}.jpg")
        images.append(entry)
    return {"batch": state.id, "model": state.model, "weights_sha256": state.weights_sha256, "images": images}


class BatchDesk:
    """Starts, follows, ends batches; blocking calls run in threads."""

    def __init__(self, store: BatchStore, folder: str, most: int) -> None:
        self._store, self._folder, self._most = store, folder, most

    async def start(self, state: BatchState) -> BatchState:
        """Begin, or go on with, a batch. Raises Problem where it runs, or too many do."""
        return await _in_thread(self._start, state)

    async def look(self, batch: str) -> BatchState | None:
        """How far a batch is; None where there is none."""
        return await _in_thread(self._look, batch)

    async def cancel(self, batch: str) -> BatchState | None:
        """End a batch; what is done stays."""
        return await _in_thread(self._cancel, batch)

    def _start(self, state: BatchState) -> BatchState:
        if len(_running()) >= self._most:
            raise Problem("overload", "as many batches are under way as may be: wait for one to end", RETRY_SECONDS)
        actor = self._hired(state)
        try:
            state = replace(state, status="queued", note="", updated=time.time())
            self._store.write(state)
        except UserError:
            ray.kill(actor)
            raise
        actor.run.remote(state.id)
        return state

    def _hired(self, state: BatchState) -> Any:
        """The actor of a batch, of which there is one at a time. Raises Problem where it has one already."""
        runner = ray.remote(BatchRunner).options(
            name=state.id,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            runtime_env={"env_vars": forwarded_environment()},
        )
        end = time.monotonic() + ENDING_SECONDS
        while True:
            try:
                return runner.remote(self._folder)
            except ActorAlreadyExistsError as error:
                known = self._store.read(state.id)
                if known is None or not known.over or time.monotonic() > end:
                    raise running(state) from error
                time.sleep(0.1)  # it is over, and its actor about to end

    def _look(self, batch: str) -> BatchState | None:
        state = self._store.read(batch)
        return self._judged(state) if state is not None else None

    def _judged(self, state: BatchState) -> BatchState:
        """A batch that says it runs, but has no actor, was cut short."""
        if state.over or _actor(state.id) is not None:
            return state
        if state.status == "queued" and time.time() - state.updated < SILENT_SECONDS:
            return state
        again = self._store.read(state.id) or state  # it may have ended in between
        return again if again.over else replace(again, status="interrupted", note="its process has ended: resume it")

    def _cancel(self, batch: str) -> BatchState | None:
        state = self._look(batch)
        if state is None or state.over:
            return state
        actor = _actor(batch)
        if actor is not None:
            ray.kill(actor)
        state = replace(self._store.read(batch) or state, status="cancelled")
        self._store.write(state)
        return state


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    try:
        return await asyncio.to_thread(function, *arguments)
    except UserError as error:  # what remembers batches is away
        raise Problem("unavailable", str(error), RETRY_SECONDS) from error


def _running() -> set[str]:
    """The batches that have an actor."""
    return {one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE}


def _waits(spec: BatchSpec) -> str:
    """What a batch has to wait for, empty where it can begin."""
    free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    return "" if free >= spec.cpus else f"waits for a CPU ({spec.cpus:g} wanted, {free:g} free): add machines, or set batch_cpus to 0"


def running(state: BatchState) -> Problem:
    """The problem of a batch that is begun while it runs."""
    return Problem("batch-running", f"batch {state.id} is under way: look at it with GET, or end it with DELETE")
