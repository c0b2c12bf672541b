"""Figures for Prometheus, which Ray exports from every node; without Ray, in tests, they go nowhere."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from stratum_serve.worker import Answer

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
REPEAT_SECONDS = 3.0  # Ray drops a gauge that was not set during two of its export intervals, of 10 s each unless configured
SIZES = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0]


class Meters:
    """What an ingress replica counts and times."""

    def __init__(self) -> None:
        import ray

        self._on = ray.is_initialized()
        if not self._on:
            return
        from ray.util.metrics import Counter, Histogram

        self._requests = Counter("stratum_requests", "Requests by model and status.", ("model", "status"))
        self._pixels = Counter("stratum_pixels", "Pixels of answered images.", ("model",))
        self._shadows = Counter("stratum_shadows", "Answers compared with a shadow's, by outcome.", ("model", "outcome"))
        self._steps = Histogram("stratum_step_seconds", "Time by step.", SECONDS, ("model", "step"))
        self._batches = Histogram("stratum_batch_images", "Images that went through the network together.", SIZES, ("model",))
        self._flying = Level("stratum_in_flight", "Requests under way in this ingress replica.")

    def request(self, model: str, status: int) -> None:
        """A request has ended."""
        if self._on:
            self._requests.inc(1, {"model": model, "status": str(status)})

    def answered(self, model: str, answer: Answer, seconds: float) -> None:
        """A request was answered with what was found."""
        if not self._on:
            return
        self._pixels.inc(answer.pixels, {"model": model})
        self._batches.observe(answer.together, {"model": model})
        for step, taken in {**answer.timings, "total": seconds}.items():
            self._steps.observe(taken, {"model": model, "step": step})

    def shadowed(self, model: str, outcome: str) -> None:
        """A shadow's answer was compared."""
        if self._on:
            self._shadows.inc(1, {"model": model, "outcome": outcome})

    def in_flight(self, count: int) -> None:
        """So many requests are under way."""
        if self._on:
            self._flying.set(count)


def server_timing(timings: Mapping[str, float]) -> str:
    """The value of a ``Server-Timing`` header."""
    return ", ".join(f"{step};dur={1000 * seconds:.1f}" for step, seconds in timings.items())


class Level:
    """A gauge that is still there long after it was last set."""

    def __init__(self, name: str, description: str) -> None:
        from ray.util.metrics import Gauge

        self._gauge = Gauge(name, description)
        self._value = 0.0
        threading.Thread(target=self._repeat, daemon=True, name=name).start()

    def set(self, value: float) -> None:
        """The figure from now on."""
        self._value = value
        self._gauge.set(value)

    def _repeat(self) -> None:
        while True:
            self._gauge.set(self._value)
            time.sleep(REPEAT_SECONDS)


def loaded_models() -> Level:
    """How many models a replica holds."""
    return Level("stratum_loaded_models", "Models loaded in this replica.")


def batch_histogram() -> Any:
    """The histogram of requests whose patches go through stage 2 together."""
    from ray.util.metrics import Histogram

    return Histogram("stratum_refine_requests", "Requests whose patches went through stage 2 together.", SIZES)
