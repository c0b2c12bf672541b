"""Each epoch once in the MLflow run, however often the process that logs was killed."""

import logging
import math
from collections.abc import Collection, Mapping

from stratum.tracking import RunLogger
from stratum.tracking.delivery import deliver_leftovers
from stratum.tracking.store import client_for

logger = logging.getLogger(__name__)
MARK = "epoch"  # the metric that every epoch's row has
WAIT_S = 20.0


class Journal:
    """Logs an epoch's row unless the run has it already."""

    def __init__(self, run: RunLogger, known: Collection[int] = ()) -> None:
        self._run, self._known = run, set(known)

    def __call__(self, row: Mapping[str, float], epoch: int) -> None:
        """Logs the row of an epoch, counted from 1; a second time does nothing."""
        if epoch not in self._known:
            self._known.add(epoch)
            self._run.log_metrics({name: value for name, value in row.items() if math.isfinite(value)}, epoch)


def open_journal(run: RunLogger) -> Journal:
    """A journal that knows which epochs the run has.

    What a killed process of this machine left undelivered goes out first. Where the store is away, nothing is known: training goes on, and
    an epoch that is trained again may show two values.
    """
    try:
        deliver_leftovers(run.uri, WAIT_S)
        known = [metric.step for metric in client_for(run.uri).get_metric_history(run.run_id, MARK)]
    except Exception as error:  # tracking must not stop a training
        logger.warning("run %s: cannot ask %s which epochs it has (%s)", run.run_id, run.uri, error)
        known = []
    return Journal(run, known)
