"""The deployments that hold models: several share the replicas of each, and a replica loads what it is asked for.

What goes wrong for a client comes back as a value, since an exception would come back wrapped.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from stratum_serve.calls import call, everywhere
from stratum_serve.config import Scaling, ServeConfig
from stratum_serve.directory import PackageSource
from stratum_serve.engine import Engine
from stratum_serve.meters import batch_histogram, loaded_models
from stratum_serve.problems import Problem
from stratum_serve.refine import Patches, StageOne, StageTwo
from stratum_serve.worker import Answer, Task, Worker

logger = logging.getLogger("ray.serve")
STUCK = 2  # deadlines


class _Host:
    """Loads models, least recently used ones out, with threads fitted to the replica's CPUs; what is live is loaded from the start."""

    def __init__(self, config: ServeConfig, scaling: Scaling) -> None:
        self._config = config
        self.worker = Worker(config.batching, threads=max(1, int(scaling.cpus)), pixels=config.limits.pixels)
        held = loaded_models()
        loaded: dict[str, None] = {}

        @serve.multiplexed(max_num_models_per_replica=config.models_held)  # type: ignore[untyped-decorator]
        async def engine(model_id: str) -> Engine:
            opened = await self.worker.load(model_id, device="cuda" if scaling.gpus else "cpu", backend=config.backend)
            loaded[model_id] = None
            held.set(min(len(loaded), config.models_held))
            return opened

        self.engine: Callable[[str], Awaitable[Engine]] = engine

    async def load_live(self, only: tuple[str, ...] | None = None) -> None:
        """Load what the configuration names, so that a new replica is warm before it gets requests."""
        source = PackageSource()
        models = [model for model in self._config.models if only is None or model.name in only]
        wanted = [(model, which) for model in models for which in model.which]
        for model, which in wanted:
            try:
                target = await self.worker.off_loop(self.worker.loader, source.find, model, which)
                await self.engine(target.model_id)
            except Problem as problem:  # the ingress tells clients
                logger.error("model %s: %s", model.name, problem.detail)


class Models:
    """Answers tasks with the model that the request names."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        self._host, self._longest = _Host(config, config.scaling), config.limits.seconds
        await self._host.load_live()

    async def answer(self, model_id: str, task: Task) -> Answer | Problem:
        """The answer to a task."""
        try:
            return await self._host.worker.answer(await self._host.engine(model_id), task)
        except Problem as problem:
            return problem

    async def check_health(self) -> None:
        """Serve puts another replica in the place of one whose network hangs."""
        check_age(self._host.worker.age, self._longest)

    async def load(self, model_id: str) -> Problem | None:
        """Have a model ready."""
        return await _loaded(self._host, model_id)


class FirstStage:
    """Stage 1 of pipelines, and all that is done with whole images."""

    async def __init__(self, config: ServeConfig, stage2: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        self._host, self._longest = _Host(config, config.stage1), config.limits.seconds
        self._stage = StageOne(self._host.worker, config.batching)
        self._stage2 = stage2
        await self._host.load_live(config.pipelines)

    async def answer(self, model_id: str, task: Task) -> Answer | Problem:
        """The answer to a task."""

        async def refine(patches: Patches, seconds: float) -> Patches:
            refined: Patches = await call(self._stage2, "refine", model_id, patches, seconds)
            return refined

        try:
            return await self._stage.answer(await self._host.engine(model_id), task, refine)
        except Problem as problem:
            return problem

    async def check_health(self) -> None:
        """Serve puts another replica in the place of one whose network hangs."""
        check_age(self._stage.age, self._longest)

    async def load(self, model_id: str) -> Problem | None:
        """Have a model ready, in stage 2 as well."""
        try:
            await everywhere(self._stage2, "load", model_id)
        except Problem as problem:
            return problem
        return await _loaded(self._host, model_id)


class SecondStage:
    """Stage 2 of pipelines: patches of many requests."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        self._host, self._longest = _Host(config, config.stage2), config.limits.seconds
        self._stage = StageTwo(self._host.worker, config.batching, config.limits.pixels)
        self._together = batch_histogram()
        await self._host.load_live(config.pipelines)

    async def refine(self, model_id: str, patches: Patches, seconds: float) -> Patches | Problem:
        """Probabilities of patches."""
        try:
            refined, together = await self._stage.refine(await self._host.engine(model_id), patches, seconds)
        except Problem as problem:
            return problem
        self._together.observe(together)
        return refined

    async def check_health(self) -> None:
        """Serve puts another replica in the place of one whose network hangs."""
        check_age(self._stage.age, self._longest)

    async def load(self, model_id: str) -> Problem | None:
        """Have a model ready."""
        return await _loaded(self._host, model_id)


async def _loaded(host: _Host, model_id: str) -> Problem | None:
    try:
        await host.engine(model_id)
    except Problem as problem:
        return problem
    return None


def check_age(age: float, longest: float) -> None:
    """Raises RuntimeError where a batch has been running for so long that, by the longest deadline, nobody waits for it any more."""
    if age > STUCK * longest:
        raise RuntimeError(f"the network has been at one batch for {age:.0f} s: it hangs")
