"""Timing the finalists of a sweep, alone: no trial runs any more, a node's CPUs are all taken, and calls come one after another."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from stratum import cost
from stratum.data.source import load_data
from stratum.memory import MemoryRequest, peak_memory
from stratum.pareto import pareto_front
from stratum.training.appraise import store_costs, timed_images, timed_model
from stratum.tuning.spec import SweepSpec
from stratum.tuning.studies import Study
from stratum.tuning.sweep import TrialRow
from stratum_models.errors import UserError
from stratum_models.optimize import prepare_for_inference

logger = logging.getLogger(__name__)
SEARCH_FINALISTS = 6


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A package to time; ``overrides`` are the variant's."""

    name: str
    package: str
    preset: str
    overrides: Mapping[str, object]


def front(rows: Sequence[TrialRow], study: Study) -> list[TrialRow]:
    """The finished trials that no other beats in accuracy, multiply-adds and size together."""
    finished = [row for row in rows if row.state == "finished"]
    return [finished[index] for index in pareto_front([row.metrics for row in finished], study.objectives)]


def choose_finalists(rows: Sequence[TrialRow], sweep: SweepSpec) -> list[TrialRow]:
    """What is timed: of a grid every finished trial, of a search the Pareto front; where there are too many, the best by utility."""
    finished = [row for row in rows if row.state == "finished" and row.package]
    ranked = sorted(finished, key=lambda row: -sweep.plan.utility(row.metrics))
    if sweep.space != "search":
        best = {row.name for row in ranked[: sweep.finalists or None]}
        return [row for row in finished if row.name in best]  # in the grid's order: ratios are to its first
    names = {row.name for row in front(rows, sweep.plan)}
    return [row for row in ranked if row.name in names][: sweep.finalists or SEARCH_FINALISTS]


def winner(rows: Sequence[TrialRow], sweep: SweepSpec) -> TrialRow | None:
    """The finished trial with the highest utility; None where none finished."""
    finished = [row for row in rows if row.state == "finished" and row.package]
    return max(finished, key=lambda row: sweep.plan.utility(row.metrics), default=None)


def measure(rows: Sequence[TrialRow], sweep: SweepSpec) -> dict[str, dict[str, float]]:
    """``cost/latency_ms``, ``cost/latency_ratio`` (to the first) and ``cost/infer_memory_mb`` at ``sweep.cost_size``, and
    ``cost/train_step_ms`` and ``cost/train_memory_mb`` of a batch at the size that was trained, by trial, measured in one Ray task.

    The task asks for all CPUs of a node (or a GPU), so that nothing of this cluster runs beside it.
    """
    finalists = [
        Finalist(name=row.name, package=row.package, preset=row.preset, overrides=row.overrides) for row in rows if row.package is not None
    ]
    if not finalists:
        return {}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    task = ray.remote(num_cpus=_whole_node(nodes, gpu=sweep.base.use_gpu), num_gpus=int(sweep.base.use_gpu), max_retries=1)(_measure)
    found: dict[str, dict[str, float]] = ray.get(task.remote(finalists, sweep))
    return found


def with_costs(rows: Sequence[TrialRow], costs: Mapping[str, Mapping[str, float]]) -> list[TrialRow]:
    """The rows with their measured costs."""
    return [replace(row, metrics={**row.metrics, **costs.get(row.name, {})}) for row in rows]


def keep_costs(rows: Sequence[TrialRow], costs: Mapping[str, Mapping[str, float]]) -> None:
    """Writes all costs of the rows that were measured into their packages. Raises StorageError where the storage is away."""
    for row in rows:
        if row.package and row.name in costs:
            store_costs(row.package, {name: value for name, value in row.metrics.items() if name.startswith("cost/")})


def _measure(finalists: list[Finalist], sweep: SweepSpec) -> dict[str, dict[str, float]]:
    """The body of the Ray task."""
    device = "cuda" if sweep.base.use_gpu else "cpu"
    threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    torch.set_num_threads(threads)
    models = {f.name: prepare_for_inference(timed_model(f.package).to(device)) for f in finalists}
    data = load_data(sweep.base.data)
    timings = cost.time_models(models, timed_images(data, sweep.cost_size), repeats=sweep.timing_rounds)
    del models
    found: dict[str, dict[str, float]] = {}
    for finalist in finalists:
        timing = timings[finalist.name]
        found[finalist.name] = {"cost/latency_ms": timing.latency_ms, "cost/latency_ratio": timing.ratio}
        options: dict[str, Any] = {"num_classes": len(data.classes), "device": device, "threads": threads}
        found[finalist.name] |= _memory(finalist, sweep, options)
    return found


def _memory(finalist: Finalist, sweep: SweepSpec, options: Mapping[str, Any]) -> dict[str, float]:
    """Memory of ``predict``, and memory and time of a training step, each in a process of its own; what cannot be measured is left out."""
    shared = {"preset": finalist.preset, "overrides": cost.unresized(finalist.overrides), **options}
    try:
        infer = peak_memory(MemoryRequest(**shared, size=sweep.cost_size))
        train = peak_memory(MemoryRequest(**shared, size=_trained_size(sweep), train_batch=sweep.base.train.batch_size))
    except UserError as error:
        logger.warning("%s: %s", finalist.name, error)
        return {}
    figures = {
        "cost/infer_memory_mb": infer.infer_mb,
        "cost/train_memory_mb": train.train_mb,
        "cost/train_step_ms": train.train_step_ms,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _trained_size(sweep: SweepSpec) -> tuple[int, int]:
    """``sweep.cost_size`` shrunk or grown to the shorter side that images are scaled to; multiples of 32, as the network pads to."""
    tile = round(sweep.base.data.tile * sweep.base.augment.scale)
    short = int(str(sweep.extra.get("input_short") or tile or min(sweep.cost_size)))
    height, width = (max(32, round(side * short / min(sweep.cost_size) / 32) * 32) for side in sweep.cost_size)
    return height, width


def _whole_node(nodes: Sequence[Mapping[str, float]], *, gpu: bool) -> float:
    """The CPUs of the largest node, of those with a GPU where one is needed: CPUs of another could never be had together with it."""
    able = [node for node in nodes if not gpu or node.get("GPU", 0) > 0]
    return max((node.get("CPU", 1.0) for node in able), default=1.0)
