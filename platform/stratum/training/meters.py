"""How training goes, as gauges for Prometheus, which Ray exports from every node.

``ray_stratum_train_loss``, ``ray_stratum_train_images_per_second`` and ``ray_stratum_train_epoch``, each with the label ``run``.
"""

import math
from collections.abc import Mapping

GAUGES = {
    "train/loss": ("stratum_train_loss", "Loss of the last epoch."),
    "train/images_per_s": ("stratum_train_images_per_second", "Training images a second, of all workers."),
    "epoch": ("stratum_train_epoch", "Epochs done."),
}


class TrainMeters:
    """The gauges of one run, set by its rank 0."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {row: Gauge(name, text, ("run",)) for row, (name, text) in GAUGES.items()}
        self._tags = {"run": run}

    def epoch(self, row: Mapping[str, float]) -> None:
        """Show an epoch's figures; what it lacks, or what is not finite, stays as it was."""
        for name, gauge in self._gauges.items():
            value = row.get(name, math.nan)
            if math.isfinite(value):
                gauge.set(float(value), self._tags)
