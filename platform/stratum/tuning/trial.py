"""One trial: a plain function of Ray Tune that opens the trial's MLflow run and trains its network.

One worker is the trial's own process, which has the worker's CPUs and GPU. Several are Ray Train's, and the trial, which then only waits
for them, asks for none.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
from torch import Tensor

from stratum import cost, logs, storage
from stratum.data.source import Dataset
from stratum.tracking import Run, open_run
from stratum.training.appraise import draw_figures, timed_images, timed_model
from stratum.training.context import LocalContext
from stratum.training.distributed import run_distributed, work
from stratum.training.engine import TrainResult
from stratum.training.evaluation import collect, evaluator_for
from stratum.training.flags import with_class_weights
from stratum.training.progress import say_nothing, say_on_stdout
from stratum.training.run import RUN_FILE, build_loaders, claim, claimed, load, parameters, run_folder, write_package
from stratum.training.spec import RunSpec
from stratum.tuning.reporting import FINISHED, JUDGED, PACKAGE, RUN_ID, UTILITY, EpochRows, Report, counted
from stratum.tuning.space import Judgement, Variant, known
from stratum.tuning.spec import SweepSpec
from stratum.tuning.studies.study import RELATIVE_TIME
from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import load_manifest, load_package

logger = logging.getLogger(__name__)

RELATIVE_ROUNDS = 5  # in which a trial is timed beside the study's reference
PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0)  # seconds between tries to open a trial's run while the tracking store is away


def run_trial(config: Mapping[str, Any], sweep: SweepSpec, parent_id: str, tracking: str) -> None:
    """Train the network of ``config`` and report each epoch to Tune, at the end with the package's URI.

    A trial that was interrupted goes on from its last checkpoint and in its own MLflow run.
    """
    os.environ["MLFLOW_TRACKING_URI"] = tracking  # the driver's: this process may stand on another machine
    variant = sweep.variant(config, str(ray.tune.get_context().get_trial_id()))
    with logs.log_fields(sweep=sweep.name, trial=variant.name):
        _run_trial(variant, config, sweep, parent_id)


def _run_trial(variant: Variant, config: Mapping[str, Any], sweep: SweepSpec, parent_id: str) -> None:
    data = load(sweep.base)  # once for all that follows: every image is decoded for it
    spec = weighted(sweep.run_spec(variant, config), variant.class_weights, data)
    costs = static_costs(variant.preset, variant.overrides, sweep, data)
    with patient_run(spec, f"{sweep.name}/{variant.name}", trial_tags(sweep, variant, variant.name, variant.rows), parent_id) as run:
        claim(spec, run.run_id)
        run.log_metrics(costs)
        fixed = {**costs, RUN_ID: run.run_id}
        epochs = 0 if "variant" in config else sweep.base.train.epochs  # what was named stays, to be compared with
        threshold = threshold_macs(variant.preset, variant.overrides, sweep, data)
        try:
            rows = EpochRows(fixed=fixed, study=sweep.study, epochs=epochs, threshold_macs=threshold)
            result = train_network(spec, run, data, rows)
        except SystemExit:  # Tune stopped the trial; the driver, which knows why, says how the run ended
            run.leave()
            raise
        final = with_utility(result, {**costs, **counted(result.metrics, threshold)}, spec, sweep, data)
        run.log_metrics(final, step=result.epochs)
        log_figures(run, result, data)
    judged = {one.name: judge(one, variant, spec, result, sweep, data, parent_id) for one in variant.judgements}
    ray.tune.report({**fixed, **final, "epoch": result.epochs, FINISHED: 1, PACKAGE: result.package, JUDGED: judged})


class TrialContext(LocalContext):
    """A trial's own process: checkpoints go to the trial's folder, epochs to Tune, which may end the trial there."""

    def __init__(self, spec: RunSpec, rows: EpochRows) -> None:
        super().__init__(run_folder(spec), "cuda" if spec.use_gpu else "cpu")
        self._rows = rows

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, *, best: bool) -> None:
        """Keeps the checkpoint, then tells Tune."""
        super().report(metrics, checkpoint, best=best)
        ray.tune.report(self._rows({name: float(value) for name, value in metrics.items()}))


def train_network(spec: RunSpec, run: Run, data: Dataset, rows: EpochRows) -> TrainResult:
    """Trains here, or on as many workers as the spec asks for, and reports each epoch to Tune."""
    if spec.num_workers > 1:
        return run_distributed(spec, callbacks=[Report(rows)], run_id=run.run_id)
    return work(spec, run.logger(), say_on_stdout, TrialContext(spec, rows), data)


def judge(
    judgement: Judgement, variant: Variant, spec: RunSpec, trained: TrainResult, sweep: SweepSpec, data: Dataset, parent_id: str
) -> dict[str, Any]:
    """Evaluates a trial's weights once more, in an MLflow run and with a package of its own; metrics, run and package come back."""
    spec = replace(spec, name=judgement.name, model=replace(spec.model, overrides={**spec.model.overrides, **judgement.overrides}))
    tags = trial_tags(sweep, variant, judgement.name, judgement.rows)
    with patient_run(spec, f"{sweep.name}/{judgement.name}", tags, parent_id) as run:
        claim(spec, run.run_id)
        result: TrainResult = with_cpus(spec, evaluated_again, spec, trained, data)
        costs = static_costs(variant.preset, judgement.overrides, sweep, data)
        threshold = threshold_macs(variant.preset, judgement.overrides, sweep, data)
        metrics = with_utility(result, {**costs, **counted(result.metrics, threshold)}, spec, sweep, data)
        run.log_metrics(metrics, step=result.epochs)
    return {"metrics": metrics, "run_id": run.run_id, "package": result.package}


def with_cpus(spec: RunSpec, call: Callable[..., Any], *arguments: object) -> Any:
    """The answer of a call where a worker's CPUs are: here where the trial is the worker, else in a task outside of the trial's place."""
    if spec.num_workers == 1:
        return call(*arguments)
    task = ray.remote(num_cpus=spec.cpus_per_worker, num_gpus=int(spec.use_gpu), scheduling_strategy="DEFAULT")(call)
    return ray.get(task.remote(*arguments))


def with_utility(result: TrainResult, costs: Mapping[str, float], spec: RunSpec, sweep: SweepSpec, data: Dataset) -> dict[str, float]:
    """What was found and what it costs, by the clock too where the study asks for that, and how the sweep ranks it."""
    metrics = {**result.metrics, **costs, **relative_time(spec, result, sweep, data)}
    return {**metrics, UTILITY: sweep.plan.utility(metrics)}


def relative_time(spec: RunSpec, result: TrainResult, sweep: SweepSpec, data: Dataset) -> dict[str, float]:
    """The time of the package's prediction over that of the study's reference, timed in turn; empty where the study has none."""
    if not sweep.plan.reference:
        return {}
    return {RELATIVE_TIME: with_cpus(spec, _timed_beside, str(result.package), timed_images(data, sweep.cost_size), sweep)}


def _timed_beside(package: str, images: Sequence[Tensor], sweep: SweepSpec) -> float:
    """Both networks see the same validation images, at the size that costs refer to."""
    device, name = "cuda" if sweep.base.use_gpu else "cpu", sweep.plan.reference
    overrides = cost.unresized({**known(name, {**sweep.plan.defaults, **sweep.extra}), **sweep.plan.reference_options})
    classes = load_manifest(storage.fetch_tree(package)).num_classes
    reference = build_model(name, num_classes=classes, overrides=overrides)
    models = {key: prepare_for_inference(one.to(device)) for key, one in (("reference", reference), ("own", timed_model(package)))}
    rounds = min(sweep.timing_rounds, RELATIVE_ROUNDS) or 1
    return cost.time_models(models, images, repeats=rounds, warmup=1)["own"].ratio


def evaluated_again(spec: RunSpec, trained: TrainResult, data: Dataset) -> TrainResult:
    """The trained package's weights in the network that ``spec`` describes: evaluated, and stored as the package of that run."""
    context = LocalContext(run_folder(spec), "cuda" if spec.use_gpu else "cpu")
    weights = load_package(storage.fetch_tree(str(trained.package))).model.state_dict()
    model = build_model(spec.model.preset, num_classes=len(data.classes), overrides=spec.model.overrides)
    model.load_state_dict(weights)
    evaluator = collect(model.to(context.device), build_loaders(spec, data, context)[1], evaluator_for(data.task, data.classes), context)
    assert evaluator is not None  # a process alone is rank 0
    return write_package(spec, data, model, trained, evaluator)


def weighted(spec: RunSpec, rule: str, data: Dataset) -> RunSpec:
    """The run with the weights that a rule gives to the classes of its training images; without a rule, as it is."""
    return with_class_weights(spec, data, rule, say_nothing) if rule else spec


def trial_tags(sweep: SweepSpec, variant: Variant, name: str, rows: Sequence[str]) -> dict[str, str]:
    """What MLflow is told of a trial beside the options of its network."""
    tags = {"stratum.sweep": sweep.name, "stratum.variant": name, "stratum.paper_rows": ",".join(rows)}
    return tags | ({"stratum.class_weights": variant.class_weights} if variant.class_weights else {})


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


def log_figures(run: Run, result: TrainResult, data: Dataset) -> None:
    """Overlays, precision-recall, particle sizes and the training's curves as artifacts; a trial does not fail for want of them."""
    with tempfile.TemporaryDirectory(prefix="stratum-figures-") as folder:
        try:
            draw_figures(result, data, Path(folder))
        except Exception as error:
            logger.warning("%s: no figures: %s", result.package, error)
        for path in sorted(Path(folder).iterdir()):
            run.log_artifact(path, "evaluation")


def static_costs(preset: str, overrides: Mapping[str, object], sweep: SweepSpec, data: Dataset) -> dict[str, float]:
    """``cost/params``, ``cost/macs`` and ``cost/size_mb`` of a network at the sweep's size, whatever size it predicts at."""
    return cost.preset_cost(preset, sweep.cost_size, num_classes=len(data.classes), overrides=cost.unresized(overrides))


def threshold_macs(preset: str, overrides: Mapping[str, object], sweep: SweepSpec, data: Dataset) -> tuple[float, float] | None:
    """What a network costs that picks by a threshold, as :func:`stratum.cost.threshold_macs`."""
    return cost.threshold_macs(preset, sweep.cost_size, num_classes=len(data.classes), overrides=cost.unresized(overrides))


def earlier_run(spec: RunSpec) -> str | None:
    """The MLflow run of this trial's earlier attempt; None where there was none."""
    folder = run_folder(spec)
    return claimed(folder)[1] if storage.exists(storage.join(folder, RUN_FILE)) else None
