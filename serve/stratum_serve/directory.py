"""Which packages stand behind the names of the models, now: aliases are followed while the server runs.

A new version goes live only after it has been fetched, checked and loaded; until then, and where that fails, the one before it answers.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from stratum.registry import NotRegisteredError, fetch_package, find_version
from stratum.registry.packages import verified
from stratum_models.errors import UserError
from stratum_models.package import Manifest, manifest_sha256
from stratum_serve.config import ModelConfig
from stratum_serve.names import Reference
from stratum_serve.problems import Problem

logger = logging.getLogger("ray.serve")
FORGET_SECONDS = 600.0  # for which an alias or version that was named explicitly is kept without being asked for


@dataclass(frozen=True, kw_only=True)
class Target:
    """One package that can answer."""

    name: str
    uri: str
    manifest: Manifest
    manifest_sha256: str
    version: str = ""  # in the registry; empty for packages by path
    aliases: tuple[str, ...] = ()

    @property
    def model_id(self) -> str:
        """What replicas know it by: where it is and what it must be."""
        return f"{self.uri}#{self.manifest_sha256}"

    @property
    def pipeline(self) -> bool:
        """Whether it has two stages."""
        return self.manifest.preset.startswith("two_stage")

    def about(self) -> dict[str, str]:
        """What an answer says of who gave it."""
        return {"name": self.name, "version": self.version, "weights_sha256": self.manifest.weights_sha256}


class Source(Protocol):
    """Where targets come from; blocking."""

    def find(self, model: ModelConfig, which: str) -> Target:
        """The target of an alias or version, empty for what the configuration says. Raises UserError."""
        ...


class PackageSource:
    """Packages in the registry, on disk, or on S3; each is checked once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[Manifest, str]] = {}  # with the hash of the manifest; by URI and hash

    def find(self, model: ModelConfig, which: str) -> Target:
        """See :class:`Source`."""
        if not model.package:
            return self._registered(model, which or model.alias)
        if which:
            raise NotRegisteredError(f"model {model.name} is a package without versions: ask for {model.name}", model_known=True)
        folder = fetch_package(model.package)
        key = model.package, manifest_sha256(folder)
        if key not in self._known:
            self._known[key] = _checked(folder)
        manifest, sha256 = self._known[key]
        return Target(name=model.name, uri=model.package, manifest=manifest, manifest_sha256=sha256)

    def _registered(self, model: ModelConfig, which: str) -> Target:
        name = model.registered or model.name
        found = find_version(f"models:/{name}/{which}" if which.isdecimal() else f"models:/{name}@{which}")
        key = found.uri, found.manifest_sha256 or found.weights_sha256
        manifest, sha256 = self._known.get(key) or _checked(fetch_package(found.uri))
        if found.weights_sha256 not in ("", manifest.weights_sha256) or found.manifest_sha256 not in ("", sha256):
            raise UserError(f"{found.uri}: its weights or manifest are not those that were registered: register it again")
        self._known[key] = manifest, sha256
        return Target(
            name=model.name, uri=found.uri, manifest=manifest, manifest_sha256=sha256, version=found.version, aliases=found.aliases
        )


def _checked(folder: Path) -> tuple[Manifest, str]:
    """The manifest of an undamaged package, and its hash."""
    return verified(folder), manifest_sha256(folder)


@dataclass(kw_only=True)
class _Entry:
    target: Target | None = None
    error: UserError | Problem | None = None  # why there is no target, or no newer one
    asked: float = 0.0  # by time.monotonic, when last
    looked: float = -math.inf  # when the last look ended
    look: asyncio.Task[None] | None = None  # the last one


class Directory:
    """The targets of all references that were asked for, refreshed in the background.

    Args:
        models: what is served.
        source: where targets come from.
        load: loads a target in the replicas; raises Problem where that fails.
        patience: seconds for which a failure is believed, however many ask.
    """

    def __init__(
        self, models: Iterable[ModelConfig], source: Source, load: Callable[[Target], Awaitable[None]], patience: float = 5.0
    ) -> None:
        self.models = {model.name: model for model in models}
        self._source, self._load, self._patience = source, load, patience
        self._configured = [Reference(name=model.name, which=which) for model in self.models.values() for which in model.which]
        self._configured.sort(key=lambda reference: bool(reference.which))  # what is live comes first
        self._entries: dict[Reference, _Entry] = {reference: _Entry() for reference in self._configured}

    @property
    def ready(self) -> bool:
        """Whether any model answers."""
        return any(entry.target is not None for reference, entry in self._entries.items() if not reference.which)

    def live(self, name: str) -> tuple[Target | None, str]:
        """What answers under a bare name, and what is wrong with it, if anything."""
        entry = self._entries[Reference(name=name)]
        return entry.target, _said(entry.error) if entry.error else ""

    async def resolve(self, reference: Reference) -> Target:
        """The target of a reference. Raises Problem: unknown, or broken."""
        if reference.name not in self.models:
            raise Problem("unknown-model", f"there is no model {reference.name!r} here: known are {', '.join(self.models)}")
        entry = self._entries.setdefault(reference, _Entry())
        entry.asked = time.monotonic()
        if entry.target is None and entry.asked - entry.looked >= self._patience:
            await asyncio.shield(self._look(reference, entry))
        if entry.target is not None:
            return entry.target
        error = entry.error
        if reference not in self._configured and isinstance(error, NotRegisteredError):
            self._entries.pop(reference, None)  # what clients invent is not kept
        raise _problem(error, reference)

    async def refresh(self) -> None:
        """Look at every reference again, and forget those that nobody has asked for in a while."""
        now = time.monotonic()
        for reference, entry in list(self._entries.items()):
            if reference not in self._configured and now - entry.asked > FORGET_SECONDS:
                del self._entries[reference]
            elif not (reference.version and entry.target is not None):  # a version never changes
                await self._look(reference, entry)

    def close(self) -> None:
        """End what is under way."""
        for entry in self._entries.values():
            if entry.look is not None:
                entry.look.cancel()

    def _look(self, reference: Reference, entry: _Entry) -> asyncio.Task[None]:
        """The look at a reference that is under way, or a new one; it does not end with those who wait for it."""
        if entry.look is None or entry.look.done():
            entry.look = asyncio.get_running_loop().create_task(self._update(reference, entry))
        return entry.look

    async def _update(self, reference: Reference, entry: _Entry) -> None:
        try:
            found = await asyncio.to_thread(self._source.find, self.models[reference.name], reference.which)
            if entry.target is None or found.model_id != entry.target.model_id:
                await self._load(found)
                logger.info("model %s is now %s", reference, found.model_id)
                entry.target = found
            else:
                entry.target = replace(entry.target, aliases=found.aliases, manifest=found.manifest)
            entry.error = None
        except (UserError, Problem) as error:
            if _said(error) != (_said(entry.error) if entry.error else ""):
                logger.error("model %s: %s", reference, _said(error))
            entry.error = error
        finally:
            entry.looked = time.monotonic()


def _said(error: UserError | Problem) -> str:
    return error.detail if isinstance(error, Problem) else str(error)


def _problem(error: UserError | Problem | None, reference: Reference) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, NotRegisteredError):
        return Problem("unknown-version" if reference.which and error.model_known else "unknown-model", str(error))
    return Problem("model-broken", f"{reference} cannot be loaded ({error}): ask its owner to repair or promote another version", 5)
