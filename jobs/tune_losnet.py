"""The sweep over LosNet: the paper's ablation grid, a search of the joint space, or presets side by side."""

from dataclasses import dataclass, replace
from typing import Any

from stratum.cli import run_job
from stratum.tuning.job import SweepArgs, sweep_job


@dataclass(frozen=True, kw_only=True)
class Args(SweepArgs):
    """What to sweep over, on which data, and where the results go."""

    data: str = "synthetic://ore?images=64&size=256&seed=0"
    """A folder or COCO JSON, local or s3://, or synthetic ore."""
    experiment: str = "losnet-sweep"
    """MLflow's experiment."""
    cost_size: str = "480x640"
    """Height x width that multiply-adds, latency and memory refer to."""
    register: str = "losnet"
    """Name of the winner in MLflow's registry; "none" leaves it out."""
    demo: bool = False
    """A small sweep on synthetic ore that takes minutes: fills in every flag that is not given."""


# LosNet with the paper's two pyramids (Table 6) and two lighter variants, small enough for two cores.
DEMO: dict[str, Any] = {
    "tables": "6",
    "models": "losnet:fpn_channels=64,losnet:head_convs=1",
    "data": "synthetic://ore?images=48&size=128&seed=0&rocks=14&d50=20&empty=0.05",
    "experiment": "losnet-demo",
    "epochs": 12,
    "size": 128,
    "batch": 6,
    "evaluate_every": 4,
    "timing_rounds": 7,
    "keep": "demo-package",  # what `make serve` serves
}


def main(args: Args) -> int:
    """Train many variants of LosNet, compare them beside the paper's figures, and keep the best.

    Tables 1 to 6 are the paper's. Ends with a table, a plot of the Pareto front and the winner's package; all of it is also in the
    sweep's MLflow run.
    """
    return sweep_job("losnet", with_demo(args))


def with_demo(args: Args) -> Args:
    """The flags, with --demo's own values for those that were not given."""
    if not args.demo:
        return args
    plain = Args()
    untouched = {name: value for name, value in DEMO.items() if getattr(args, name) == getattr(plain, name)}
    return replace(args, **untouched)


if __name__ == "__main__":
    run_job(main, Args)
