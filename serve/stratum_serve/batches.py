"""Batches: many images on S3, predicted by Ray Data in the background, in an actor that outlives the request and the replica.

What is known of a batch is a JSON file in a folder of the server's, so that any ingress replica can answer for it; the images that are done
have records beside their results (:mod:`stratum.inference.records`), so that a batch that was cut short goes on where it was.
"""

import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import platformdirs
import ray

from stratum import storage
from stratum.cluster import forwarded_environment
from stratum.inference.batch import list_work, predict_all
from stratum.inference.instances import InstanceResults
from stratum.inference.masks import MaskResults
from stratum.inference.outputs import output_names
from stratum.inference.work import BatchSpec, Found, Work
from stratum.registry import fetch_package
from stratum_models.errors import UserError
from stratum_models.package import load_manifest

Status = Literal["queued", "running", "finished", "failed", "cancelled", "interrupted"]
NAMESPACE = "stratum-batches"
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
            return BatchState.from_json(storage.read_bytes(self._uri(batch)).decode())
        except storage.MissingError:
            return None

    def write(self, state: BatchState) -> None:
        """Remember a batch."""
        storage.write_bytes(self._uri(state.id), replace(state, updated=time.time()).to_json().encode())

    def all(self) -> list[BatchState]:
        """All batches, oldest first."""
        try:
            names = storage.list_files(self._folder, {".json"})
        except storage.MissingError:
            return []
        states = [BatchState.from_json(storage.read_bytes(name).decode()) for name in names]
        return sorted(states, key=lambda state: state.created)

    def _uri(self, batch: str) -> str:
        return storage.join(self._folder, f"{batch}.json")


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
        self._store.write(state)
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

    async def start(self, state: BatchState) -> BatchState | None:
        """Begin, or go on with, a batch; None where too many run."""
        return await asyncio.to_thread(self._start, state)

    async def look(self, batch: str) -> BatchState | None:
        """How far a batch is; None where there is none."""
        return await asyncio.to_thread(self._look, batch)

    async def cancel(self, batch: str) -> BatchState | None:
        """End a batch; what is done stays."""
        return await asyncio.to_thread(self._cancel, batch)

    def _start(self, state: BatchState) -> BatchState | None:
        if sum(1 for one in self._store.all() if not self._judged(one).over) >= self._most:
            return None
        state = replace(state, status="queued", note="", updated=time.time())
        self._store.write(state)
        runner = ray.remote(BatchRunner).options(
            name=state.id,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            runtime_env={"env_vars": forwarded_environment()},
        )
        actor: Any = runner.remote(self._folder)
        actor.run.remote(state.id)
        return state

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
