"""What a trial reports to Tune.

Ray Train imports this module in the process that watches over the workers: it stands apart from the trial so that torchvision, which takes
seconds to import, does not come with it.
"""

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from stratum.tuning.studies import find_study

# What trials report to Tune beside the metrics of training.
UTILITY, FINISHED, TIME, RUN_ID, PACKAGE = "sweep/utility", "sweep/finished", "sweep/time", "sweep/run_id", "sweep/package"
JUDGED = "sweep/judged"


class Report(TuneReportCallback):
    """Forwards an epoch's metrics to Tune, with the costs that are known beforehand and the utility they make.

    ``sweep/time`` is the epoch. The last one has none, so that the scheduler passes over it: it must not stop a trial that is done and
    about to write its package.
    """

    def __init__(self, fixed: Mapping[str, Any], study: str, epochs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fixed, self._study, self._epochs = dict(fixed), study, epochs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the trainer's controller, once for each report of the workers."""
        row = {**metrics[0], **self._fixed}
        if row.get("epoch", 1) < self._epochs:
            row[TIME] = int(row.get("epoch", 1))
        if math.isfinite(utility := find_study(self._study).utility(row)):
            row[UTILITY] = utility
        super().after_report(run_context, [row], checkpoint)
