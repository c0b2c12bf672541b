"""The sweep over ARSM: its paper's networks, each of its choices alone, a search of the joint space, or presets side by side."""

from dataclasses import dataclass

from stratum.cli import run_job
from stratum.tuning.job import SweepArgs, sweep_job


@dataclass(frozen=True, kw_only=True)
class Args(SweepArgs):
    """What to sweep over, on which data, and where the results go."""

    data: str = "synthetic://cells?images=64&size=256&seed=0"
    """Images with class masks, local or s3://, or synthetic cells."""
    experiment: str = "arsm-sweep"
    """MLflow's experiment."""
    cost_size: str = "256x256"
    """Height x width that multiply-adds, latency and memory refer to."""
    register: str = "arsm"
    """Name of the winner in MLflow's registry; "none" leaves it out."""


def main(args: Args) -> int:
    """Train many variants of HRNet with and without ARSM, compare them beside the paper's figures, and keep the best.

    Table 1 has the networks of the paper's Tables 1 to 3; temperature, schedule, samples, width and weights vary one choice each. All keep
    the resolution of the image; --set stem_strides=2,2 works at a quarter of it and takes a sixteenth of the time. Ends with a table,
    plots of the Pareto front and of each choice's effect, and the winner's package; all of it is also in the sweep's MLflow run.
    """
    return sweep_job("arsm", args)


if __name__ == "__main__":
    run_job(main, Args)
