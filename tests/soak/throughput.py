"""What Ray costs a training: images per second beside the plain loop, two workers beside two threads, and the way to the first step.

    python tests/soak/throughput.py --json throughput.json

Every run is a process of its own on the same data. The rounds alternate, so that what else the machine does meets all of them; a run's
figure is the median of its epochs after the first, and what is reported is the median of the rounds. Ends with exit code 1 where one worker
is below 97 % of the plain loop. ``--parts submit`` needs root, as tests/soak/cluster.py does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))

from machines import BIN, DASHBOARD_PORT, ROOT, Cluster, Missing, cluster
from mlflow import MlflowClient
from runs import only_run

LEAST = 0.97  # of the plain loop, with one worker
CONTENDERS = {
    "plain, 2 threads": ["--workers", "0"],
    "1 worker, 2 threads": ["--workers", "1", "--cpus-per-worker", "2"],
    "2 workers, 1 thread each": ["--workers", "2", "--cpus-per-worker", "1"],
}


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of every contender, and their ratios."""
    seen: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(args.rounds):
        for name, flags in CONTENDERS.items():
            seen[name].append(images_per_second([*job(args), *flags], plain="plain" in name))
            print(f"round {number + 1}: {name}: {seen[name][-1]:.2f} images/s", flush=True)
    middle = {name: statistics.median(rates) for name, rates in seen.items()}
    plain, one, two = middle.values()
    return {"images per second": middle, "rounds": seen, "one worker / plain": one / plain, "two workers / one with two threads": two / one}


def job(args: argparse.Namespace) -> list[str]:
    """The training that all run."""
    data = f"synthetic://ore?images={args.images}&size={args.size}&seed=0"
    flags = ["--data", data, "--model", args.model, "--size", str(args.size), "--batch", str(args.batch), "--epochs", str(args.epochs)]
    return ["jobs/train.py", *flags, "--evaluate-every", str(args.epochs), "--cost-size", "64x64", "--name", "one"]


def images_per_second(command: list[str], *, plain: bool) -> float:
    """The median of a run's epochs, without the first, in which memory is found and code compiled."""
    with tempfile.TemporaryDirectory(prefix="stratum-soak-") as folder:
        tracking = f"sqlite:///{folder}/mlflow.db"
        env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        env |= {
            "MLFLOW_TRACKING_URI": tracking,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve")),
        }
        if plain:
            env["OMP_NUM_THREADS"] = "2"  # Ray gives its workers as many threads as CPUs
        done = subprocess.run([sys.executable, *command, "--storage", folder], cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        rates = [value for _, value, _ in history(tracking, "train/images_per_s")]
        return statistics.median(rates[1:])


def submitted(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from `ray job submit` to the end of the first step, on a cluster that waits for work."""
    with tempfile.TemporaryDirectory(prefix="stratum-soak-") as folder:
        tracking = f"sqlite:///{folder}/mlflow.db"
        MlflowClient(tracking).search_experiments()
        with cluster((2,), env={"MLFLOW_TRACKING_URI": tracking}) as made:
            return in_parts(made, tracking, folder, args)


def in_parts(made: Cluster, tracking: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The parts of that time; one step is an epoch here, and what is written after it comes once it is stored."""
    data = f"synthetic://ore?images={args.batch * 5 // 4}&size={args.size}&seed=0"
    command = [str(BIN / "ray"), "job", "submit", "--address", f"http://{made.head.address}:{DASHBOARD_PORT}", "--working-dir", "."]
    flags = ["--data", data, "--model", args.model, "--size", str(args.size), "--batch", str(args.batch), "--epochs", "1"]
    command += ["--submission-id", "timed", "--", "python", "jobs/train.py", *flags, "--cost-size", "64x64", "--storage", folder]
    start = time.time()
    done = subprocess.run(command, cwd=ROOT, env=made.env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    opened = only_run(tracking).info.start_time / 1000
    [(_, seconds, stored), *_] = history(tracking, "train/epoch_s")
    driver = driver_started(made)
    parts = {
        "submission, upload, the driver's process": driver - start,
        "imports, connection, data looked at, run opened": opened - driver,
        "workers started, data and model built, first step and its checkpoint": stored - opened,
    }
    return {
        "seconds": {name: round(value, 2) for name, value in parts.items()},
        "in all": round(stored - start, 2),
        "steps": round(seconds, 2),
    }


def driver_started(made: Cluster) -> float:
    """When the job's own process was started."""
    script = "from ray.job_submission import JobSubmissionClient as C; import sys; print(C(sys.argv[1]).get_job_info('timed').start_time)"
    command = [sys.executable, "-c", script, f"http://{made.head.address}:{DASHBOARD_PORT}"]
    return float(subprocess.run(command, env=made.env, capture_output=True, text=True, check=True).stdout) / 1000


def history(tracking: str, metric: str) -> list[tuple[int, float, float]]:
    """Step, value and time (s) of a metric of the one run."""
    found = MlflowClient(tracking).get_metric_history(only_run(tracking).info.run_id, metric)
    return sorted((one.step, one.value, one.timestamp / 1000) for one in found)


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="compare,submit")
    parser.add_argument("--model", default="losnet")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"compare": compared, "submit": submitted}
    try:
        found = {name: parts[name](args) for name in args.parts.split(",")}
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    ratio = found.get("compare", {}).get("one worker / plain", 1.0)
    if ratio < LEAST:
        print(f"one worker reaches {ratio:.1%} of the plain loop, not {LEAST:.0%}", file=sys.stderr)
    return int(ratio < LEAST)


if __name__ == "__main__":
    sys.exit(main())
