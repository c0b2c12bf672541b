"""Timing the finalists of a sweep, alone: no trial runs any more, a node's CPUs are all taken, and calls come one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray

from stratum.data.source import load_data
from stratum.pareto import pareto_front
from stratum.training.appraise import Costs, Packaged, measure, store_costs, timed_images
from stratum.training.distributed import in_a_task
from stratum.tuning.spec import SweepSpec
from stratum.tuning.studies import Study
from stratum.tuning.sweep import TrialRow

SEARCH_FINALISTS = 6


def front(rows: Sequence[TrialRow], study: Study) -> list[TrialRow]:
    """The finished trials that no other beats in accuracy, multiply-adds and size together."""
    finished = [row for row in rows if row.state == "finished"]
    return [finished[index] for index in pareto_front([row.metrics for row in finished], study.objectives)]


def choose_finalists(rows: Sequence[TrialRow], sweep: SweepSpec) -> list[TrialRow]:
    """What is timed: of a grid every finished trial, of a search what was named and the Pareto front; of too many, the best by utility."""
    finished = [row for row in rows if row.state == "finished" and row.package]
    ranked = sorted(finished, key=lambda row: -sweep.plan.utility(row.metrics))
    if sweep.space != "search":
        best = {row.name for row in ranked[: sweep.finalists or None]}
        return [row for row in finished if row.name in best]  # in the grid's order: ratios are to its first
    named = set(sweep.grid().names())
    names = {row.name for row in front(rows, sweep.plan)} - named
    return [row for row in finished if row.name in named] + [row for row in ranked if row.name in names][
        : sweep.finalists or SEARCH_FINALISTS
    ]


def winner(rows: Sequence[TrialRow], sweep: SweepSpec) -> TrialRow | None:
    """The finished trial with the highest utility; None where none finished."""
    finished = [row for row in rows if row.state == "finished" and row.package]
    return max(finished, key=lambda row: sweep.plan.utility(row.metrics), default=None)


def measured(rows: Sequence[TrialRow], sweep: SweepSpec) -> Costs:
    """What :func:`stratum.training.appraise.measure` finds at ``sweep.cost_size``, by trial, in one Ray task.

    The task asks for all CPUs of a node (or a GPU), so that nothing of this cluster runs beside it.
    """
    finalists = [Packaged(name=row.name, package=str(row.package), preset=row.preset, overrides=row.overrides) for row in rows]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = _whole_node(nodes, gpu=sweep.base.use_gpu)
    return in_a_task(_measure, finalists, sweep, cpus=cpus, gpu=sweep.base.use_gpu)


def with_costs(rows: Sequence[TrialRow], costs: Costs) -> list[TrialRow]:
    """The rows with their measured costs."""
    return [replace(row, metrics={**row.metrics, **costs.figures.get(row.name, {})}) for row in rows]


def keep_costs(rows: Sequence[TrialRow], costs: Costs) -> None:
    """Writes all costs of the rows that were measured into their packages. Raises StorageError where the storage is away."""
    for row in rows:
        if row.package and row.name in costs.figures:
            store_costs(row.package, {name: value for name, value in row.metrics.items() if name.startswith("cost/")}, costs.setting)


def _measure(finalists: list[Packaged], sweep: SweepSpec) -> Costs:
    """The body of the Ray task."""
    images = timed_images(load_data(sweep.base.data), sweep.cost_size)
    return measure(finalists, images, sweep.base, sweep.cost_size, sweep.timing_rounds)


def _whole_node(nodes: Sequence[Mapping[str, float]], *, gpu: bool) -> float:
    """The CPUs of the largest node, of those with a GPU where one is needed: CPUs of another could never be had together with it."""
    able = [node for node in nodes if not gpu or node.get("GPU", 0) > 0]
    return max((node.get("CPU", 1.0) for node in able), default=1.0)
