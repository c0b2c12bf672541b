"""What a trial reports to Tune.

Ray Train imports this module in the process that watches over the workers: it stands apart from the trial so that torchvision, which takes
seconds to import, does not come with it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from stratum.tuning.studies import find_study

# What trials report to Tune beside the metrics of training.
UTILITY, FINISHED, TIME, RUN_ID, PACKAGE = "sweep/utility", "sweep/finished", "sweep/time", "sweep/run_id", "sweep/package"
JUDGED = "sweep/judged"


def counted(metrics: Mapping[str, float], threshold_macs: tuple[float, float] | None) -> dict[str, float]:
    """``cost/macs`` with the patches that were refined on average, where a threshold picks them and they were counted."""
    if threshold_macs is None or "val/patches" not in metrics:
        return {}
    without, each = threshold_macs
    return {"cost/macs": without + each * metrics["val/patches"]}


@dataclass(frozen=True, kw_only=True)
class EpochRows:
    """Makes what Tune is told of an epoch: its metrics with the costs that are known beforehand, and the utility they make.

    ``sweep/time`` is the epoch. The last one has none, so that the scheduler passes over it: it must not stop a trial that is done and
    about to write its package. With ``epochs`` at 0 it may stop none.
    """

    fixed: Mapping[str, Any]
    study: str
    epochs: int
    threshold_macs: tuple[float, float] | None = None

    def __call__(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The row of one epoch."""
        row = {**metrics, **self.fixed, **counted(metrics, self.threshold_macs)}
        if row.get("epoch", 1) < self.epochs:
            row[TIME] = int(row.get("epoch", 1))
        if math.isfinite(utility := find_study(self.study).utility(row)):
            row[UTILITY] = utility
        return row


class Report(TuneReportCallback):
    """Forwards an epoch of several workers to Tune."""

    def __init__(self, rows: EpochRows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = rows

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the trainer's controller, once for each report of the workers."""
        super().after_report(run_context, [self._rows(metrics[0])], checkpoint)
