"""The same run under Ray Train: a trainer around ``execute``."""

import contextvars
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch

from stratum import logs, storage
from stratum.allocator import worker_environment
from stratum.cluster import ray_is_local
from stratum.data.source import Dataset
from stratum.tracking import RunLogger
from stratum.training.context import Context
from stratum.training.engine import Log, TrainResult
from stratum.training.errors import NonFiniteLossError, StoppedError
from stratum.training.journal import open_journal
from stratum.training.meters import TrainMeters
from stratum.training.progress import Say, say_on_stdout
from stratum.training.ray_context import SCORE, RayContext
from stratum.training.relay import Relay
from stratum.training.run import execute, run_folder
from stratum.training.spec import RunSpec
from stratum_models.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[["RayContext"], T]


def run_distributed(
    spec: RunSpec,
    *,
    run_id: str | None = None,
    callbacks: Sequence[Any] = (),
    say: Say | None = None,
    tracking_uri: str | None = None,
    relay: Relay | None = None,
) -> TrainResult:
    """Trains a checked and resolved spec on ``spec.num_workers`` workers; a killed worker costs what came after the last checkpoint.

    Args:
        spec: what to run. A run of this name that was interrupted goes on from its last checkpoint: see :func:`stratum.training.run.claim`.
        run_id: the MLflow run that rank 0 logs to.
        callbacks: of Ray Train, such as Tune's ``TuneReportCallback``.
        say: where progress lines go, in the worker; by default its output.
        tracking_uri: the store of ``run_id``; by default the configured one.
        relay: tells the workers to stop.

    Raises:
        StoppedError: the workers were told to stop, and have written a checkpoint.
        NonFiniteLossError: the loss became infinite or not a number. Not tried again.
        UserError: something that is the user's to mend, in any worker. Not tried again, but for a storage that cannot be reached.
        ray.train.TrainingFailedError: workers failed more often than ``spec.max_failures``.
    """
    run = RunLogger(run_id, tracking_uri) if run_id else None
    return on_workers(partial(work, spec, run, say or say_on_stdout), spec, callbacks, relay)


def work(spec: RunSpec, run: RunLogger | None, say: Say, context: Context, data: Dataset | None = None) -> TrainResult:
    """What each worker does; rank 0 logs. ``data`` are the run's, where this process has them."""
    logs.set_up_logging()
    with logs.log_fields(run=spec.name, mlflow_run=run.run_id if run else None, rank=context.rank):
        return _work(spec, run, say, context, data)


def _work(spec: RunSpec, run: RunLogger | None, say: Say, context: Context, data: Dataset | None) -> TrainResult:
    if run is None or context.rank != 0:
        return execute(spec, context, None, say, data)
    with run:
        return execute(spec, context, metered(open_journal(run), spec.name), say, data)


def metered(log: Log, run: str) -> Log:
    """``log``, after which each epoch's figures are also on this node's gauges."""
    meters = TrainMeters(run)

    def logged(row: dict[str, float], epoch: int) -> None:
        log(row, epoch)
        meters.epoch(row)

    return logged


def on_workers(function: Work[T], spec: RunSpec, callbacks: Sequence[Any] = (), relay: Relay | None = None) -> T:
    """Calls a function with the context of each of the spec's workers and returns what it gave on rank 0."""
    check_cluster(spec)
    filesystem, path = storage.ray_filesystem(run_folder(spec))
    trainer = ray.train.torch.TorchTrainer(
        partial(_guarded, function, storage.join(run_folder(spec), f"error-{uuid4().hex[:8]}.txt"), relay),  # type: ignore[arg-type]
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.num_workers, use_gpu=spec.use_gpu, resources_per_worker=worker_resources(spec)
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name="ray",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": worker_environment(use_gpu=spec.use_gpu)},
        ),
    )
    outcome = fit(trainer).return_value  # type: ignore[attr-defined]
    if isinstance(outcome, (NonFiniteLossError, StoppedError, UserError)):
        raise outcome
    value: T = outcome
    return value


def fit(trainer: ray.train.torch.TorchTrainer) -> ray.train.Result:
    """``trainer.fit()`` in a thread of its own: in the main one, Ray Train takes Ctrl-C over and ends the process with exit code 0."""
    if threading.current_thread() is not threading.main_thread():  # as in a trial of Tune
        return trainer.fit()
    done: Future[ray.train.Result] = Future()

    def run() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="fit", daemon=True).start()
    return done.result()


def _guarded(function: Work[T], note: str, relay: Relay | None) -> T | NonFiniteLossError | StoppedError | UserError:
    """Returns the error that trying again cannot mend: Ray restarts the workers after any that is raised.

    A user's error of one worker among several is raised all the same, since the others may wait for this one; what it said is kept at the
    URI ``note``, where the restarted workers find it.
    """
    context = RayContext(relay)
    alone = context.world_size == 1
    try:
        if not alone and storage.exists(note):
            return UserError(storage.read_bytes(note).decode())
        return function(context)
    except (NonFiniteLossError, StoppedError) as error:
        return error
    except storage.StorageError:  # a server that is away may come back
        raise
    except UserError as error:
        if alone:
            return error
        storage.write_bytes(note, str(error).encode())
        raise


def in_a_task(call: Callable[..., T], *arguments: object, cpus: float, gpu: bool) -> T:
    """The answer of a call on a node with so many CPUs, which PyTorch then uses, and a GPU where that is asked."""
    task = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_retries=1)(_with_its_cpus)
    answer: T = ray.get(task.remote(call, *arguments))
    return answer


def _with_its_cpus(call: Callable[..., T], *arguments: object) -> T:
    """The body of the Ray task, whose process may have done others with other CPUs before."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    return call(*arguments)


def worker_resources(spec: RunSpec) -> dict[str, float]:
    """What Ray sets aside for each worker."""
    return {"CPU": spec.cpus_per_worker, **({"GPU": 1} if spec.use_gpu else {})}


def check_cluster(spec: RunSpec) -> None:
    """Refuses a run that this cluster cannot carry: Ray would wait for machines without a word.

    Raises:
        UserError: too few CPUs or GPUs in all, on a Ray of this machine's own. A cluster may grow.
    """
    if not ray.is_initialized():
        raise UserError("Ray is not running in this process: call ray.init() first")
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, each in worker_resources(spec).items():
        if each * spec.num_workers <= total.get(kind, 0):
            continue
        problem = f"{spec.num_workers} workers with {each:g} {kind} each need more than the {total.get(kind, 0):g} {kind} there are"
        if ray_is_local():
            raise UserError(f"{problem}: ask for fewer, or set RAY_ADDRESS to a cluster that has them")
        logger.warning("%s: waiting for the cluster to grow", problem)
