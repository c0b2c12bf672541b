"""The logger that a worker uses for a run which the driver opened."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from stratum.tracking.delivery import Outbox, deliver_leftovers, metric_item
from stratum.tracking.store import tracking_uri

logger = logging.getLogger(__name__)
SAMPLE_SECONDS, FIRST_SAMPLE_SECONDS = 10.0, 1.0
CLOSE_SECONDS = 30.0
_OPENING = threading.Lock()  # of all loggers together: a lock of its own could not be pickled with a logger


class RunLogger:
    """Logs into one run from any process; can be pickled to a worker. Logging never waits for the store and never fails because of it.

    Use it as a context manager, or :meth:`close` it, so that the last metrics leave. ``started_ms`` is when the run began (epoch
    milliseconds): system metrics are numbered from there, so that they go on where a restarted worker left off.
    """

    def __init__(self, run_id: str, uri: str | None = None, *, system_metrics: bool = True, started_ms: int | None = None) -> None:
        self.run_id = run_id
        self.uri = uri or tracking_uri()
        self.system_metrics = system_metrics
        self.started_ms = started_ms if started_ms is not None else int(time.time() * 1000)
        self._outbox: Outbox | None = None
        self._sampler: _Sampler | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers by name, such as ``val/mask_ap50``, at an epoch."""
        self._open().put(metric_item(dict(metrics), step))

    __call__ = log_metrics

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; one that has another value already keeps it."""
        self._open().put({"op": "params", "values": {key: str(value) for key, value in params.items()}})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags."""
        self._open().put({"op": "tags", "values": {key: str(value) for key, value in tags.items()}})

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Store a copy of a file, or of a folder, among the run's artifacts."""
        self._open().put_file(Path(path), folder)

    def flush(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Wait until all is delivered; False where it is not within ``timeout`` seconds."""
        return self._outbox is None or self._outbox.flush(timeout)

    def close(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Deliver what is left, for at most ``timeout`` seconds; False where some of it stays in the spool."""
        if self._sampler is not None:
            self._sampler.stop()
        outbox, self._outbox, self._sampler = self._outbox, None, None
        return outbox is None or outbox.close(timeout)

    def _open(self) -> Outbox:
        """The outbox of this process, made at the first use, by whichever thread is first."""
        with _OPENING:
            if self._outbox is None:
                self._outbox = Outbox(self.uri, self.run_id)
                threading.Thread(target=deliver_leftovers, args=(self.uri, CLOSE_SECONDS), name="mlflow-leftovers", daemon=True).start()
                if self.system_metrics:
                    self._sampler = _Sampler(self._outbox, self.started_ms)
                    self._sampler.start()
            return self._outbox

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_outbox": None, "_sampler": None}


class _Sampler(threading.Thread):
    """Samples this machine with MLflow's own monitors, under MLflow's names.

    MLflow's SystemMetricsMonitor itself ends for good at the first request that fails, so its parts are used without it.
    """

    def __init__(self, outbox: Outbox, started_ms: int) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self._outbox, self._started_ms = outbox, started_ms
        self._stopped = threading.Event()
        self._samples = 0

    def run(self) -> None:
        """Sample until stopped, and at the end."""
        try:
            monitors = _monitors()
            stopped = False
            while not stopped:
                stopped = self._stopped.wait(FIRST_SAMPLE_SECONDS if self._samples == 0 else SAMPLE_SECONDS)
                self._sample(monitors)
        except Exception as error:  # figures about the machine must not end a training
            logger.warning("no system metrics from here on: %s", error)

    def stop(self) -> None:
        """End within seconds."""
        self._stopped.set()
        self.join(5)

    def _sample(self, monitors: list[Any]) -> None:
        metrics = {"system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6}
        for monitor in monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        step = (time.time() * 1000 - self._started_ms) // (SAMPLE_SECONDS * 1000)
        self._outbox.put(metric_item(metrics, max(0, int(step))))
        self._samples += 1


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    monitors: list[Any] = []
    for kind in kinds:
        try:
            monitors.append(kind())
        except Exception:  # no driver, no device: nothing to sample
            logger.debug("no %s", kind.__name__)
    psutil.cpu_percent()  # utilisation is counted from the previous call on
    return monitors
