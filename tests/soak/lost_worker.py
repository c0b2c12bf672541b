"""The machine of a training's worker goes in the middle of an epoch, with notice and without."""

import argparse
import math
import tempfile
import time
from typing import Any

from machines import Cluster, cluster
from network import Node
from watching import finish, history, read_until, runs, wait

SMALL = ["--size", "96", "--augment", "none", "--batch", "8", "--cost-size", "96x96"]
SWEEP = [*SMALL, "--data", "synthetic://ore?images=64&size=96&seed=0", "--models", "losnet_debug,losnet_debug:head_convs=2"]
SWEEP += ["--epochs", "1", "--evaluate-every", "1", "--timing-rounds", "0", "--register", "none"]
TRAIN = ["jobs/train.py", *SMALL, "--evaluate-every", "3", "--model", "losnet_debug", "--workers", "2"]
INTO_S = 2.0  # an epoch's seconds before its machine goes
NOTICE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "8", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}  # seconds from SIGTERM to the end


def worker_lost(args: argparse.Namespace) -> dict[str, Any]:
    """Three machines: a sweep, then a training on two workers, one of whose machines goes in the middle of an epoch."""
    with tempfile.TemporaryDirectory(prefix="stratum-soak-") as folder:
        tracking = f"sqlite:///{folder}/mlflow.db"
        with cluster((1, 1, 1), env={"MLFLOW_TRACKING_URI": tracking, **NOTICE}) as made:
            found = {"sweep": swept(made, tracking, folder)}
            data = f"synthetic://ore?images={args.images}&size=96&seed=0"
            job = [*TRAIN, "--data", data, "--epochs", str(args.epochs), "--storage", f"{folder}/runs"]
            finish(made, [*job, "--name", "whole", "--experiment", "whole"])
            found["warned"] = warned(made, job, tracking)
            found["killed"] = killed(made, job, tracking)
            return found


def swept(made: Cluster, tracking: str, folder: str) -> dict[str, Any]:
    """A sweep of two trials."""
    start = time.monotonic()
    finish(made, ["jobs/tune_losnet.py", *SWEEP, "--storage", f"{folder}/runs", "--name", "sweep", "--experiment", "sweep"])
    statuses = [run.info.status for run in runs(tracking, "sweep")]
    assert statuses == ["FINISHED"] * 3, statuses
    return {"trials": len(statuses) - 1, "seconds": round(time.monotonic() - start, 1)}


def killed(made: Cluster, job: list[str], tracking: str) -> dict[str, Any]:
    """A training loses the machine of one of its workers at once; the third machine takes its place."""
    with made.driver([*job, "--name", "killed", "--experiment", "killed"]) as driver:
        read_until(driver, " left")  # at the end of an epoch
        time.sleep(INTO_S)
        start = time.monotonic()
        worker_of(made).kill()
        went_on = read_until(driver, "going on after")
        seconds = time.monotonic() - start
        wait(driver)
    check_training(tracking, "killed")
    return {"MLflow runs": 1, "losses": "as undisturbed", "went on": went_on, "seconds until it did": round(seconds, 1)}


def warned(made: Cluster, job: list[str], tracking: str) -> dict[str, Any]:
    """The same with SIGTERM, as when a spot machine is taken: the training writes a checkpoint within the epoch first."""
    with made.driver([*job, "--name", "warned", "--experiment", "warned"]) as driver:
        read_until(driver, " left")  # at the end of an epoch
        time.sleep(INTO_S)
        start = time.monotonic()
        node = worker_of(made)
        assert node.process is not None
        node.process.terminate()
        went_on = read_until(driver, "going on after")
        seconds = time.monotonic() - start
        wait(driver)
    check_training(tracking, "warned")
    node.kill()
    made.start(node, 1)
    assert "steps of the next" in went_on, went_on
    return {"MLflow runs": 1, "losses": "as undisturbed", "went on": went_on, "seconds until it did": round(seconds, 1)}


def worker_of(made: Cluster) -> Node:
    """A machine, not the head, on which a worker of the training runs."""
    return next(node for node in made.nodes[1:] if any("RayTrainWorker" in title for title in node.titles()))


def check_training(tracking: str, experiment: str) -> None:
    """One run, each epoch once, with the losses of the run that nobody disturbed."""
    (run,) = runs(tracking, experiment)
    assert run.info.status == "FINISHED", run.info.status
    hit, whole = history(tracking, run), history(tracking, *runs(tracking, "whole"))
    assert [epoch for epoch, _ in hit] == [epoch for epoch, _ in whole], hit
    assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(hit, whole, strict=True)), f"{hit} are not the losses {whole}"
