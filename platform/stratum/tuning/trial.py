"""One trial: a plain function of Ray Tune that opens the trial's MLflow run and trains its network with Ray Train.

The function itself asks for no CPUs: it only waits for the workers of the trainer inside, which ask for their own.
"""

import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from stratum import cost, storage
from stratum.data.source import load_data
from stratum.tracking import Run, open_run
from stratum.training.appraise import draw_figures
from stratum.training.distributed import run_distributed
from stratum.training.engine import TrainResult
from stratum.training.run import RUN_FILE, claim, claimed, parameters, run_folder
from stratum.training.spec import RunSpec
from stratum.tuning.space import Variant
from stratum.tuning.spec import SweepSpec
from stratum_models.errors import UserError

logger = logging.getLogger(__name__)

# What trials report to Tune beside the metrics of training.
UTILITY, FINISHED, TIME, RUN_ID, PACKAGE = "sweep/utility", "sweep/finished", "sweep/time", "sweep/run_id", "sweep/package"
PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0)  # seconds between tries to open a trial's run while the tracking store is away


class Report(TuneReportCallback):
    """Forwards an epoch's metrics to Tune, with the costs that are known beforehand and the utility they make.

    ``sweep/time`` is the epoch. The last one has none, so that the scheduler passes over it: it must not stop a trial that is done and
    about to write its package.
    """

    def __init__(self, fixed: Mapping[str, Any], sweep: SweepSpec) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fixed, self._sweep = dict(fixed), sweep

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the trainer's controller, once for each report of the workers."""
        row = {**metrics[0], **self._fixed}
        if row.get("epoch", 1) < self._sweep.base.train.epochs:
            row[TIME] = int(row.get("epoch", 1))
        if not math.isnan(row.get("val/mask_ap50", math.nan)):
            row[UTILITY] = self._sweep.tradeoff.utility(row)
        super().after_report(run_context, [row], checkpoint)


def run_trial(config: Mapping[str, Any], sweep: SweepSpec, parent_id: str, tracking: str) -> None:
    """Train the network of ``config`` and report each epoch to Tune, at the end with the package's URI.

    A trial that was interrupted goes on from its last checkpoint and in its own MLflow run.
    """
    os.environ["MLFLOW_TRACKING_URI"] = tracking  # the driver's: this process may stand on another machine
    variant = sweep.variant(config, str(ray.tune.get_context().get_trial_id()))
    spec = sweep.run_spec(variant, config)
    known = static_costs(variant, sweep)
    tags = {"stratum.sweep": sweep.name, "stratum.variant": variant.name, "stratum.paper_rows": ",".join(variant.rows)}
    with patient_run(spec, f"{sweep.name}/{variant.name}", tags, parent_id) as run:
        claim(spec, run.run_id)
        run.log_metrics(known)
        fixed = {**known, RUN_ID: run.run_id}
        result = run_distributed(spec, callbacks=[Report(fixed, sweep)], run_id=run.run_id)
        final = {**_beside_others(result, spec), **known}
        run.log_metrics({**final, UTILITY: sweep.tradeoff.utility(final)}, step=result.epochs)
        log_figures(run, result, spec)
        ray.tune.report(
            {
                **final,
                **fixed,
                "epoch": result.epochs,
                UTILITY: sweep.tradeoff.utility(final),
                FINISHED: 1,
                PACKAGE: result.package,
            }
        )


@contextmanager
def patient_run(spec: RunSpec, name: str, tags: Mapping[str, str], parent_id: str) -> Iterator[Run]:
    """The trial's MLflow run. Where the store is away it is tried again for some minutes: the sweep was started, and goes on.

    Raises UserError where the store stays away.
    """
    earlier = earlier_run(spec)
    with ExitStack() as stack:
        for pause in (*PAUSES, None):
            try:
                run = stack.enter_context(open_run(spec.experiment, name, parameters(spec), tags, parent_id, resume_id=earlier))
                break
            except UserError as error:
                if pause is None:
                    raise
                logger.warning("%s: tried again in %g s: %s", name, pause, error)
                time.sleep(pause)
        yield run


def log_figures(run: Run, result: TrainResult, spec: RunSpec) -> None:
    """Overlays, precision-recall, particle sizes and the training's curves as artifacts; a trial does not fail for want of them."""
    with tempfile.TemporaryDirectory(prefix="stratum-figures-") as folder:
        try:
            draw_figures(result, load_data(spec.data), Path(folder))
        except Exception as error:
            logger.warning("%s: no figures: %s", spec.name, error)
        for path in sorted(Path(folder).iterdir()):
            run.log_artifact(path, "evaluation")


def static_costs(variant: Variant, sweep: SweepSpec) -> dict[str, float]:
    """``cost/params``, ``cost/macs`` and ``cost/size_mb`` of a variant at the sweep's size, whatever size it predicts at."""
    classes = len(load_data(sweep.base.data).classes)
    return cost.preset_cost(variant.preset, sweep.cost_size, num_classes=classes, overrides=cost.unresized(variant.overrides))


def _beside_others(result: TrainResult, spec: RunSpec) -> dict[str, float]:
    """The metrics with the time of an iteration, the median over the epochs, and the memory of training under ``train/...``.

    Other trials ran beside this one and share its machine: ``cost/train_step_ms`` and ``cost/train_memory_mb`` are measured alone, later.
    """
    metrics = dict(result.metrics)
    if "cost/train_memory_mb" in metrics:
        metrics["train/memory_mb"] = metrics.pop("cost/train_memory_mb")
    rates = [row["train/images_per_s"] for row in result.history if row.get("train/images_per_s", 0) > 0]
    return metrics | ({"train/step_ms": 1000 * spec.train.batch_size / statistics.median(rates)} if rates else {})


def earlier_run(spec: RunSpec) -> str | None:
    """The MLflow run of this trial's earlier attempt; None where there was none."""
    folder = run_folder(spec)
    return claimed(folder)[1] if storage.exists(storage.join(folder, RUN_FILE)) else None
