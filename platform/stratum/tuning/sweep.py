"""A sweep on Ray Tune: it resumes, survives failed trials, and ends cleanly at Ctrl-C.

The search and its scheduler see different things, and both are sound. ASHA stops trials by ``sweep/utility``, one number that weighs
accuracy against the costs, which are known before the first epoch; by accuracy alone it would stop every small network. Optuna models
accuracy, multiply-adds and size as three objectives, and is told the trials that ran to the end alone: the accuracy of a stopped trial is
that of an early epoch and says little about the network. Stopped and failed trials are told as failed, which its sampler leaves out.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, ResultGrid, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from stratum import storage
from stratum.cluster import ray_is_local
from stratum.tracking import client_for
from stratum.training.distributed import worker_resources
from stratum.training.progress import duration
from stratum.tuning.reporting import FINISHED, JUDGED, PACKAGE, RUN_ID, TIME, UTILITY
from stratum.tuning.space import search_space
from stratum.tuning.spec import SweepSpec
from stratum.tuning.studies import Study
from stratum.tuning.trial import earlier_run, run_trial

NO_CPU = {"memory": 2.0**20}  # what a trial asks for that waits for its workers: Tune wants it to ask for something
ENDED = ("TERMINATED", "ERROR")  # Tune's words
State = Literal["finished", "stopped", "failed", "interrupted"]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """What became of a trial; ``rows`` are the paper's rows that it stands for."""

    name: str
    state: State
    preset: str
    overrides: Mapping[str, object]
    rows: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    run_id: str | None = None
    package: str | None = None
    error: str = ""
    learning_rate: float = 0.0


class FinishedOnly(OptunaSearch):
    """Optuna that learns from the trials it drew which ran to the end, and from no other; before it draws any, ``named`` variants run."""

    def __init__(self, *, metric: list[str], mode: list[str], seed: int, named: Sequence[str] = (), space: Any = None) -> None:
        super().__init__(space=space, metric=metric, mode=mode, seed=seed)
        self._left, self._named = list(named), set[str]()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """What a trial runs."""
        if not self._left:
            drawn: dict[str, Any] | None = super().suggest(trial_id)
            return drawn
        self._named.add(trial_id)
        options = self._space if isinstance(self._space, dict) else {}
        return {**dict.fromkeys(options), "variant": self._left.pop(0)}  # where an option is left out, Tune passes its whole domain on

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna the objectives of a finished trial; any other is told as failed."""
        if trial_id in self._named:
            return
        finished = not error and bool(result and result.get(FINISHED))
        super().on_trial_complete(trial_id, result if finished else None, error=not finished)


class Watch(Callback):
    """Says how trials go, and ends the MLflow runs of those that could not do it themselves."""

    def __init__(self, tracking: str, say: Say, study: Study, total: int, epochs: int) -> None:
        self._tracking, self._say, self._total, self._epochs = tracking, say, total, epochs
        self._title, self._metric = study.accuracy.title, study.accuracy.metric
        self._began: tuple[float, float] | None = None  # when this process began, and the trials' worth of work done by then

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its place."""
        self._began = self._began or (time.monotonic(), sum(map(self._share, trials)))
        self._say(f"{trial}: started")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """An epoch was reported."""
        if self._metric in result and not result.get(FINISHED):
            self._say(f"{trial}: epoch {int(result.get('epoch', 0))}, {self._accuracy(result)}; {self._progress(trials, trial)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or the scheduler stopped it: then its process had no time to say so."""
        last = trial.last_result or {}
        if last.get(FINISHED):
            self._say(f"{trial}: finished, {self._accuracy(last)}; {self._progress(trials, trial, ended=True)}")
        else:
            progress = self._progress(trials, trial, ended=True)
            self._say(f"{trial}: stopped early at epoch {int(last.get('epoch', 0))}, others of its age are ahead; {progress}")
            end_run(self._tracking, last.get(RUN_ID), "FINISHED", self._say, {"stratum.stopped_by": "asha"})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed; the sweep goes on."""
        self._say(f"{trial}: failed: {_reason(trial)}; {self._progress(trials, trial, ended=True)}")
        end_run(self._tracking, (trial.last_result or {}).get(RUN_ID), "FAILED", self._say)

    def _accuracy(self, result: Mapping[str, Any]) -> str:
        return f"{self._title} {result.get(self._metric, float('nan')):.3f}"

    def _progress(self, trials: list[Any], trial: Any, *, ended: bool = False) -> str:
        """How many trials are done, this one too where it ``ended``, and the time left, as far as epochs tell."""
        done = sum(other.status in ENDED for other in trials if other is not trial) + ended
        worth = sum(self._share(other) for other in trials if other is not trial) + (1.0 if ended else self._share(trial))
        text = f"{done} of {self._total} trials done"
        since, before = self._began or (time.monotonic(), worth)
        if worth <= before or done >= self._total:
            return text
        left = (time.monotonic() - since) * (self._total - worth) / (worth - before)
        return f"{text}, {duration(left)} left"

    def _share(self, trial: Any) -> float:
        """How much of a trial is behind it, 0 to 1."""
        return 1.0 if trial.status in ENDED else min(1.0, float((trial.last_result or {}).get("epoch", 0)) / self._epochs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_say": print, "_began": None}


def run_sweep(sweep: SweepSpec, parent_id: str, tracking: str, *, resume: bool = False, say: Say = print) -> tuple[list[TrialRow], bool]:
    """Run, or go on with, all trials; their rows, and whether the sweep was interrupted.

    At SIGINT or SIGTERM the trials are ended, Tune's state is stored for ``resume``, and the rows so far come back.
    """

    def trial(config: dict[str, Any]) -> None:
        run_trial(config, sweep, parent_id, tracking)

    # Utility and accuracy are known of evaluated epochs alone; Tune would end the sweep at the first epoch without them.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables: what is worth saying, Watch says
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    resources = NO_CPU if sweep.base.num_workers > 1 else worker_resources(sweep.base)
    tuner = _tuner(tune.with_resources(trial, resources), sweep, tracking, resume, say)
    with _signals() as interrupt:
        grid = tuner.fit()
    rows = [row for result, trial in _results(grid) for row in _rows(result, trial, sweep, interrupt.is_set())]
    for row in rows:
        if row.state == "interrupted":  # its process went down with its workers, and may have taken that for a failure
            end_run(tracking, row.run_id, "KILLED", say)
    return rows, interrupt.is_set()


def concurrency(sweep: SweepSpec, resources: Mapping[str, float], say: Say = print) -> int:
    """How many trials run side by side: as many as the cluster has room for their workers, whom Tune itself does not count."""
    if sweep.max_concurrent:
        return sweep.max_concurrent
    workers = sweep.base.num_workers
    room = resources.get("CPU", 0.0) // (workers * sweep.base.cpus_per_worker)
    if sweep.base.use_gpu:
        room = min(room, resources.get("GPU", 0.0) // workers)
    if room < 1 and not ray_is_local():
        say("the cluster has no room for a trial yet: one runs at a time, however much it grows; --max-concurrent says how many may")
    return max(1, int(room))


def end_run(tracking: str, run_id: str | None, status: str, say: Say, tags: Mapping[str, str] | None = None) -> None:
    """End a trial's MLflow run from the driver, where the trial was stopped before it could or has called its own stop a failure."""
    if not run_id:
        return
    try:
        client = client_for(tracking)
        for key, value in (tags or {}).items():
            client.set_tag(run_id, key, value)
        client.set_terminated(run_id, status)
    except Exception as error:  # the store may be away: the sweep goes on, and the parent's end closes this run
        say(f"run {run_id} could not be ended yet: {last_line(error)}")


def _reason(trial: Any) -> str:
    """Why a trial failed: Tune writes it here at once, and brings it to the sweep's folder later."""
    written = Path(trial.error_file) if trial.error_file else None
    return last_line(written.read_text(errors="replace") if written and written.is_file() else trial.get_error())


def last_line(error: object) -> str:
    """The last line of an exception's text or of a traceback, which is where the reason stands."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _tuner(trainable: Any, sweep: SweepSpec, tracking: str, resume: bool, say: Say) -> Tuner:
    filesystem, path = storage.ray_filesystem(sweep.folder)
    watch = Watch(tracking, say, sweep.plan, sweep.total, sweep.base.train.epochs)
    if resume and Tuner.can_restore(f"{path}/tune", storage_filesystem=filesystem):
        tuner = Tuner.restore(
            f"{path}/tune", trainable=trainable, resume_unfinished=True, restart_errored=True, storage_filesystem=filesystem
        )
        return tuner
    space, config = _space(sweep, say)
    failures = FailureConfig(max_failures=sweep.base.max_failures)
    run = RunConfig(name="tune", storage_path=path, storage_filesystem=filesystem, failure_config=failures, callbacks=[watch], verbose=0)
    return Tuner(trainable, param_space=space, tune_config=config, run_config=run)


def _space(sweep: SweepSpec, say: Say) -> tuple[dict[str, Any], TuneConfig]:
    shared: dict[str, Any] = {
        "max_concurrent_trials": concurrency(sweep, ray.cluster_resources(), say),  # type: ignore[no-untyped-call]
        "trial_name_creator": _name,
        "trial_dirname_creator": _name,
    }
    named = [v.name for v in sweep.grid().variants]
    if sweep.space != "search":
        return {"variant": tune.grid_search(named)}, TuneConfig(**shared)
    epochs = sweep.base.train.epochs
    goals = sweep.plan.objectives
    searcher = FinishedOnly(
        metric=[goal.metric for goal in goals], mode=[goal.direction for goal in goals], seed=sweep.base.train.seed, named=named
    )
    grace = min(sweep.grace_epochs or max(1, epochs // 4), max(epochs - 1, 1))
    scheduler = ASHAScheduler(
        time_attr=TIME, metric=UTILITY, mode="max", grace_period=grace, max_t=max(epochs, 2), reduction_factor=2, stop_last_trials=False
    )
    return search_space(sweep.plan), TuneConfig(num_samples=sweep.total, search_alg=searcher, scheduler=scheduler, **shared)


def _name(trial: Any) -> str:
    return str(trial.config.get("variant") or f"trial-{trial.trial_id}")


def _results(grid: ResultGrid) -> list[tuple[Any, Any]]:
    """Each trial's result and the trial itself, which alone knows whether it came to its end."""
    return [(grid[index], trial) for index, trial in enumerate(grid._experiment_analysis.trials)]


def _rows(result: Any, trial: Any, sweep: SweepSpec, interrupted: bool) -> list[TrialRow]:
    """The row of a trial, and one for each other judgement of its weights; without its figures, such a row ends as the trial did."""
    variant = sweep.variant(trial.config, trial.trial_id)
    spec = sweep.run_spec(variant, trial.config)
    metrics = result.metrics or {}
    state: State = "finished" if metrics.get(FINISHED) else "failed" if trial.status == "ERROR" else "stopped"
    if state == "stopped" and interrupted and not metrics.get("done"):
        state = "interrupted"
    row = TrialRow(
        name=variant.name,
        state=state,
        preset=variant.preset,
        overrides=variant.overrides,
        rows=variant.rows,
        metrics={key: float(value) for key, value in metrics.items() if "/" in key and isinstance(value, int | float)},
        run_id=metrics.get(RUN_ID) or earlier_run(spec),
        package=metrics.get(PACKAGE),
        error=last_line(result.error) if result.error else "",
        learning_rate=spec.train.learning_rate,
    )
    found = metrics.get(JUDGED) or {}
    nothing: dict[str, Any] = {"metrics": {}, "run_id": None, "package": None}
    judged = [
        replace(row, name=one.name, overrides=one.overrides, rows=one.rows, **found.get(one.name, nothing)) for one in variant.judgements
    ]
    return [row, *judged]


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Tells whether Tune was interrupted, and makes SIGTERM, which `ray job stop` sends, do what SIGINT does.

    Tune takes SIGINT for itself: at the first it gives the handler back and ends its trials; without one it keeps it for ever.
    """
    interrupt = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def second(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, second)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        yield interrupt
    finally:
        if signal.getsignal(signal.SIGINT) is second:
            interrupt.set()
        for number, handler in before.items():
            signal.signal(number, handler)
