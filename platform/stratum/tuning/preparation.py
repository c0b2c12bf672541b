"""Trains what trials share, before the first of them begins."""

import itertools

from stratum import storage
from stratum.tracking import open_run
from stratum.training.distributed import run_distributed
from stratum.training.progress import Say
from stratum.training.run import claim, load, parameters, run_folder
from stratum.tuning.groundwork import Groundwork, groundwork_of
from stratum.tuning.spec import SweepSpec
from stratum.tuning.trial import earlier_run, weighted
from stratum_models.package import MANIFEST_FILE


def all_groundwork(sweep: SweepSpec) -> list[Groundwork]:
    """The trainings that a sweep's trials start from; of a search, those of every stage 1 that it may draw."""
    variants = list(sweep.grid().variants)
    if sweep.space == "search":
        scales = sweep.plan.choices.get("scale", (None,))
        rules = sweep.plan.class_weights or (None,)
        drawn = [{"scale": scale, "class_weights_rule": rule} for scale, rule in itertools.product(scales, rules)]
        variants += [sweep.variant({k: v for k, v in one.items() if v is not None}, "") for one in drawn]
    found = {one.name: one for one in map(groundwork_of, variants) if one is not None}
    return list(found.values())


def lay_groundwork(sweep: SweepSpec, parent_id: str, tracking: str, say: Say) -> None:
    """Trains what is not there yet, one after the other, each in an MLflow run of its own below the sweep's."""
    found = all_groundwork(sweep)
    data = load(sweep.base) if any(one.class_weights for one in found) else None
    for one in found:
        spec = sweep.groundwork_spec(one)
        if data is not None:
            spec = weighted(spec, one.class_weights, data)
        if storage.exists(storage.join(run_folder(spec), "package", MANIFEST_FILE)):
            continue
        say(f"{one.name}: trained once for all trials that share it")
        tags = {"stratum.sweep": sweep.name, "stratum.groundwork": one.name}
        name = f"{sweep.name}/{one.name}"
        with open_run(spec.experiment, name, parameters(spec), tags, parent_id, resume_id=earlier_run(spec)) as run:
            claim(spec, run.run_id)
            result = run_distributed(spec, run_id=run.run_id, tracking_uri=tracking)
            run.log_metrics(result.metrics, step=result.epochs)
            say(f"{one.name}: Dice {result.metrics.get('val/foreground_dice', float('nan')):.3f} after {result.epochs} epochs")
