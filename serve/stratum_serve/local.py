"""Models in this process, without Ray: for tests and for measuring what Ray adds."""

from stratum_serve.config import ServeConfig
from stratum_serve.engine import Engine
from stratum_serve.refine import StageOne, StageTwo, both_here
from stratum_serve.worker import Answer, Task, Worker


class LocalBackend:
    """A worker with all models that were asked for; see :class:`stratum_serve.service.Backend`."""

    def __init__(self, config: ServeConfig) -> None:
        self._worker = Worker(config.batching, threads=max(1, int(config.scaling.cpus)), pixels=config.limits.pixels)
        self._stages = StageOne(self._worker, config.batching), StageTwo(self._worker, config.batching)
        self._engines: dict[str, Engine] = {}

    async def run(self, model_id: str, task: Task) -> Answer:
        """See :class:`stratum_serve.service.Backend`."""
        if model_id not in self._engines:
            await self.load(model_id, pipeline=False)
        return await self._worker.answer(self._engines[model_id], task)

    async def refine(self, model_id: str, task: Task) -> Answer:
        """See :class:`stratum_serve.service.Backend`."""
        if model_id not in self._engines:
            await self.load(model_id, pipeline=True)
        return await both_here(*self._stages, self._engines[model_id], task)

    async def load(self, model_id: str, *, pipeline: bool) -> None:
        """See :class:`stratum_serve.service.Backend`."""
        self._engines[model_id] = await self._worker.load(model_id)

    def close(self) -> None:
        """End its threads."""
        self._worker.close()
