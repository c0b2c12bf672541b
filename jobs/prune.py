"""Remove the checkpoints of old runs."""

import time
from dataclasses import dataclass

from stratum.cli import run_job
from stratum.cluster import results_folder
from stratum.retention import Verdict, prune


@dataclass(frozen=True, kw_only=True)
class Args:
    """Where to look, what is old, and whether to remove it."""

    storage: str
    """The folder or s3://... that runs and sweeps were stored in."""
    days: float = 30.0
    """Younger runs keep their checkpoints; counted from the end of a run."""
    delete: bool = False
    """Remove what is listed; without it nothing is changed."""


def main(args: Args) -> None:
    """List the runs whose checkpoints may go, and remove these with --delete. Packages, figures and MLflow's runs stay.

    Kept are the checkpoints of registered versions with an alias such as champion, of the best trial of each sweep, of runs that go on, and
    of runs that MLflow does not know.
    """
    freed = prune(results_folder(args.storage), days=args.days, now_ms=int(time.time() * 1000), delete=args.delete, each=show)
    done = "removed" if args.delete else "could go; nothing was changed: give --delete to remove them"
    print(f"{freed / 2**20:.1f} MiB of checkpoints {done}")


def show(verdict: Verdict) -> None:
    """One line for a run."""
    print(f"{'keep' if verdict.reason else 'old ':<5} {verdict.size / 2**20:9.1f} MiB  {verdict.folder}  {verdict.reason}".rstrip())


if __name__ == "__main__":
    run_job(main, Args)
