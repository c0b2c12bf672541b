"""The sweep over the slag paper's DeepLabv3+: its tables, each of its parts alone, a search of the joint space, or presets side by side."""

from dataclasses import dataclass

from stratum.cli import run_job
from stratum.tuning.job import SweepArgs, sweep_job


@dataclass(frozen=True, kw_only=True)
class Args(SweepArgs):
    """What to sweep over, on which data, and where the results go."""

    data: str = "synthetic://slag?images=64&size=256&seed=0"
    """Images with class masks, local or s3://, or a synthetic dip tube."""
    experiment: str = "slag-sweep"
    """MLflow's experiment."""
    register: str = "slag-deeplab"
    """Name of the winner in MLflow's registry; "none" leaves it out."""


def main(args: Args) -> int:
    """Train many variants of DeepLabv3+, compare them beside the slag paper's figures, and keep the best.

    Tables 2 and 3 are the paper's; aspp, groups and backbone vary one part each in the network that its text describes. Ends with a table,
    plots of the Pareto front and of each part's effect, and the winner's package; all of it is also in the sweep's MLflow run.
    """
    return sweep_job("slag", args)


if __name__ == "__main__":
    run_job(main, Args)
