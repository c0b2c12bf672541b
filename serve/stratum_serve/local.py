"""Models in this process, without Ray: for tests and for measuring what Ray adds."""

from collections.abc import Callable
from pathlib import Path

from stratum.registry import fetch_package
from stratum_models.errors import UserError
from stratum_serve.config import ServeConfig
from stratum_serve.engine import Engine, open_package
from stratum_serve.problems import Problem
from stratum_serve.worker import Answer, Task, Worker


class LocalBackend:
    """A worker with all models that were asked for; see :class:`stratum_serve.service.Backend`."""

    def __init__(self, config: ServeConfig, fetch: Callable[[str], Path] = fetch_package) -> None:
        self._worker = Worker(config.batching, threads=max(1, int(config.scaling.cpus)), pixels=config.limits.pixels)
        self._fetch = fetch
        self._engines: dict[str, Engine] = {}

    async def run(self, model_id: str, task: Task) -> Answer:
        """See :class:`stratum_serve.service.Backend`."""
        if model_id not in self._engines:
            await self.load(model_id, pipeline=False)
        return await self._worker.answer(self._engines[model_id], task)

    async def refine(self, model_id: str, task: Task) -> Answer:
        """See :class:`stratum_serve.service.Backend`."""
        raise Problem("unavailable", "this server has no deployments for pipelines: set pipelines")

    async def load(self, model_id: str, *, pipeline: bool) -> None:
        """See :class:`stratum_serve.service.Backend`."""
        uri, _, sha256 = model_id.rpartition("#")
        try:
            self._engines[model_id] = await self._worker.off_loop(self._worker.compute, lambda: open_package(self._fetch(uri), sha256))
        except UserError as error:
            raise Problem("model-broken", str(error), 5) from error

    def close(self) -> None:
        """End its threads."""
        self._worker.close()
