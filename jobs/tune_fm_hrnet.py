"""The sweep over FM-HRNet: its paper's tables, each of its parts alone, a search of the joint space, or presets side by side."""

from dataclasses import dataclass

from stratum.cli import run_job
from stratum.tuning.job import SweepArgs, sweep_job


@dataclass(frozen=True, kw_only=True)
class Args(SweepArgs):
    """What to sweep over, on which data, and where the results go."""

    data: str = "synthetic://coal?images=64&size=256&seed=0"
    """Images with class masks, local or s3://, or a synthetic coal face."""
    experiment: str = "fm-hrnet-sweep"
    """MLflow's experiment."""
    register: str = "fm-hrnet"
    """Name of the winner in MLflow's registry; "none" leaves it out."""


def main(args: Args) -> int:
    """Train many variants of FM-HRNet, compare them beside the paper's figures, and keep the best.

    Tables 1 and 2 are the paper's; repeats, blocks, last, dsc and aggregation vary one part each in V4. Ends with a table, plots of the
    Pareto front and of each part's effect, and the winner's package; all of it is also in the sweep's MLflow run.
    """
    return sweep_job("fm_hrnet", args)


if __name__ == "__main__":
    run_job(main, Args)
