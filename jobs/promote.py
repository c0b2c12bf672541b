"""Give the best registered version of a model an alias."""

from dataclasses import dataclass

from stratum.cli import run_job
from stratum.registry import promote


@dataclass(frozen=True, kw_only=True)
class Args:
    """Which model, what is best, and within which limits."""

    model: str
    """The registered model."""
    metric: str = ""
    """What is best: highest, or lowest for costs and losses; by default val/mask_ap50, or val/miou for models that label pixels."""
    max: tuple[str, ...] = ()
    """Limits that a version must keep, such as cost/latency_ms=40 cost/size_mb=10."""
    alias: str = "champion"
    """The alias: models:/NAME@champion then names the version."""


def main(args: Args) -> None:
    """Choose the version with the best metric among those within the limits, give it the alias, and say why the others were not taken.

    Figures are those that were stored with the version when it was registered. Without a version that qualifies nothing changes.
    """
    done = promote(args.model, args.metric, args.max, args.alias)
    for version, reason in done.passed_over:
        print(f"version {version} not taken: {reason}")
    for warning in done.warnings:
        print(f"warning: {warning}")
    before = "" if done.previous is None else " (as before)" if done.previous == done.version else f" (before: version {done.previous})"
    print(f"models:/{done.name}@{done.alias} is version {done.version}, {done.metric} {done.value:.4g}{before}")


if __name__ == "__main__":
    run_job(main, Args)
