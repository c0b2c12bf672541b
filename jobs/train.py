"""Train one model and keep its package."""

import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stratum import storage
from stratum.cli import run_job, say
from stratum.cluster import JOB_CONFIG, ray_is_local, results_folder
from stratum.cost import parse_size
from stratum.data.frequencies import RULES
from stratum.data.source import Dataset
from stratum.report.tables import INDEXES, index_table
from stratum.tracking import Run, check_reachable, open_run, tracking_uri, ui_command
from stratum.training.engine import TrainResult
from stratum.training.errors import NonFiniteLossError, StoppedError
from stratum.training.flags import TrainArgs, run_spec, with_class_weights
from stratum.training.run import (
    RUN_FILE,
    check,
    check_device,
    check_name,
    check_unchanged,
    claim,
    claimed,
    claimed_options,
    parameters,
    report_problems,
    run_local,
)
from stratum.training.spec import RunSpec
from stratum.training.stopping import stop_on_sigterm
from stratum_models.catalog import preset
from stratum_models.errors import UserError

if TYPE_CHECKING:
    from stratum.training.appraise import Costs

TIMED_ROUNDS = 9
JOB_OPTIONS = ("workers", "register", "cost_size")  # kept beside the spec, for --resume


@dataclass(frozen=True, kw_only=True)
class Args(TrainArgs):
    """What to train, on which data, and where the results go."""

    resume: str = ""
    """Go on with the run of this name after an interruption; everything but --storage is then taken from it."""
    cost_size: str = "480x640"
    """Height x width that multiply-adds, latency and memory refer to."""
    register: str = ""
    """Also register the package in MLflow under this name."""
    grace_s: float = 60.0
    """Seconds after SIGTERM in which a checkpoint may be written; then the run ends without."""


def main(args: Args) -> int:
    """Train one model, keep the package with the best weights, and log everything to one MLflow run.

    The weights of the epoch with the highest mask AP50 (of a semantic model, the highest mean IoU) on the validation images are kept: the
    averaged ones, with --ema-decay.
    """
    spec, earlier, args = (run_spec(args), None, args) if not args.resume else resumed(args)
    local, size = args.workers == 0, parse_size(args.cost_size)
    if local:
        check_device(spec)
    data = check(spec, say)
    report_problems(data, say)
    if args.class_weights in RULES and not args.resume:
        spec = with_class_weights(spec, data, args.class_weights, say)
    if args.resume:
        check_unchanged(storage.join(results_folder(args.storage), args.resume, RUN_FILE), data, spec.data)
    else:
        check_name(spec)  # before the tracking store is asked, which would make a new sqlite file
    check_reachable(tracking_uri())
    options = {name: getattr(args, name) for name in JOB_OPTIONS}
    with ExitStack() as stack:
        if not local:
            stack.enter_context(cluster(spec))  # before a name is claimed: it may be too small
        if not args.resume:
            claim(spec, options=options, fingerprint=data.fingerprint)
        print(
            f"run {spec.name}: {len(data.train)} training images, {len(data.val)} for validation, classes {', '.join(data.classes)}",
            flush=True,
        )
        try:
            with open_run(spec.experiment, spec.name, parameters(spec), {"stratum.kind": "train"}, resume_id=earlier) as run:
                claim(spec, run.run_id, options, data.fingerprint)
                with stop_on_sigterm(args.grace_s) as stop:
                    result = train(spec, run, stop, data, local=local)
                afar = not local and not ray_is_local()
                if not afar:
                    stack.close()  # nothing else should run while the package is timed
                finish(result, spec, data, run, size, args.register, afar=afar)
        except (KeyboardInterrupt, SystemExit, UserError):
            print(f"go on with: {resume_command(spec)}", flush=True)
            raise
        except NonFiniteLossError as error:
            print("error:", error, file=sys.stderr)
            return 1
    print(f"package: {result.package}\ncompare the runs with: {ui_command(run.uri)}")
    return 0


def resumed(args: Args) -> tuple[RunSpec, str | None, Args]:
    """The run that ``--resume`` names, its MLflow run, and the flags with the options that it was started with."""
    folder = storage.join(results_folder(args.storage), args.resume)
    spec, run_id = claimed(folder)
    known = {name: value for name, value in claimed_options(folder).items() if name in JOB_OPTIONS}
    return spec, run_id, replace(args, **known)


def resume_command(spec: RunSpec) -> str:
    """What to type to go on; the files of a submitted job are gone by then, so that it names the repository's."""
    program = ["python", "jobs/train.py"] if os.environ.get(JOB_CONFIG) else [sys.executable, str(Path(__file__).resolve())]
    return shlex.join([*program, "--storage", spec.storage, "--resume", spec.name])


def train(spec: RunSpec, run: Run, stop: threading.Event, data: Dataset, *, local: bool) -> TrainResult:
    """The training, in this process or on Ray, until ``stop`` is set: then it ends as at Ctrl-C, but for the checkpoint."""
    try:
        return train_here(spec, run, stop, data) if local else train_on_ray(spec, run, stop)
    except StoppedError as stopped:
        say(str(stopped))
        raise KeyboardInterrupt from stopped


def train_here(spec: RunSpec, run: Run, stop: threading.Event, data: Dataset) -> TrainResult:
    """The training in this process."""
    from stratum.training.journal import open_journal

    with run.logger() as logger:
        return run_local(spec, open_journal(logger), say, stop, data)


def train_on_ray(spec: RunSpec, run: Run, stop: threading.Event) -> TrainResult:
    """The training on Ray's workers."""
    from stratum.training.distributed import run_distributed
    from stratum.training.relay import relayed

    with relayed(say, stop) as relay:
        return run_distributed(spec, run_id=run.run_id, tracking_uri=run.uri, say=relay.say, relay=relay)


@contextmanager
def cluster(spec: RunSpec) -> Iterator[None]:
    """A Ray that can carry the run, imported only where it is used."""
    from stratum.cluster import ray_cluster

    with ray_cluster():
        from stratum.shared import check_shared
        from stratum.training.distributed import check_cluster

        check_cluster(spec)
        check_shared(spec.storage, tracking_uri())
        yield


def finish(result: TrainResult, spec: RunSpec, data: Dataset, run: Run, size: tuple[int, int], register: str, *, afar: bool) -> None:
    """Measures the package's costs, draws the figures, and logs both with the package."""
    from stratum.training.appraise import draw_figures, known_costs, store_costs

    package = str(result.package)
    measured = measured_costs(result, spec, data, size, afar=afar)
    costs = {**known_costs(result, spec, data, size), **measured.figures[spec.name]}
    store_costs(package, costs, measured.setting)
    result = replace(result, metrics={**result.metrics, **costs})
    run.log_metrics(result.metrics, step=result.epochs)
    run.set_tags(measured.tags)
    with tempfile.TemporaryDirectory(prefix="stratum-figures-") as folder:
        draw_figures(result, data, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            run.log_artifact(path, "evaluation")
    run.log_package(storage.fetch_tree(package), register or None)
    print("time and memory: " + ", ".join(f"{name} {value}" for name, value in measured.setting.items()))
    print("\n".join(f"{name:<22} {value:.6g}" for name, value in sorted(result.metrics.items())), flush=True)
    paper = preset(spec.model.preset).paper
    print("\n" + index_table([{"name": spec.name, "metrics": result.metrics, "paper": paper}], INDEXES[data.task]), flush=True)


def measured_costs(result: TrainResult, spec: RunSpec, data: Dataset, size: tuple[int, int], *, afar: bool) -> "Costs":
    """Time and memory of the package, here or ``afar``, with a worker's CPUs and GPU: this machine may be none of the cluster's."""
    from stratum.training.appraise import Packaged, measure, timed_images

    one = Packaged(name=spec.name, package=str(result.package), preset=spec.model.preset, overrides=spec.model.overrides)
    arguments = [one], timed_images(data, size), spec, size, TIMED_ROUNDS
    if not afar:
        return measure(*arguments)
    from stratum.training.distributed import in_a_task

    return in_a_task(measure, *arguments, cpus=spec.cpus_per_worker, gpu=spec.use_gpu)


if __name__ == "__main__":
    run_job(main, Args)
