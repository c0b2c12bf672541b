"""The sweep over two-stage refinement: its paper's figures 3 and 4, each of its choices alone, or a search of the joint space."""

from dataclasses import dataclass

from stratum.cli import run_job
from stratum.tuning.job import SweepArgs, sweep_job


@dataclass(frozen=True, kw_only=True)
class Args(SweepArgs):
    """What to sweep over, on which data, and where the results go."""

    data: str = "synthetic://vessels?images=48&size=384&seed=0"
    """Images with class masks, local or s3://, or synthetic vessels."""
    experiment: str = "two-stage-sweep"
    """MLflow's experiment."""
    cost_size: str = ""
    """Height x width that multiply-adds, latency and memory refer to; empty: the median size of the validation images."""
    register: str = "two-stage"
    """Name of the winner in MLflow's registry; "none" leaves it out."""


def main(args: Args) -> int:
    """Train many variants of two-stage refinement, compare them with full-resolution and sliding-window semantic models, and keep the best.

    Stage 1 is trained once for each down-scaling, in a fifth of --epochs; trials start from it. Table 3 has the paper's figures 3 and 4;
    scale, margin, blend, pick, uncertainty and prior vary one choice each. A search weighs Dice, multiply-adds and measured time against
    each other. Full resolution and the sliding window, which both are compared with, are the network of stage 2 (--set stage2=...). Ends
    with a table, the plots of Dice and of multiply-adds over the number of patches and of Dice over time, and the winner's package; all
    of it is also in the sweep's MLflow run.
    """
    return sweep_job("two_stage", args)


if __name__ == "__main__":
    run_job(main, Args)
