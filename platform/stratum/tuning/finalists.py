"""Timing the finalists of a sweep, alone: no trial runs any more, a node's CPUs are all taken, and calls come one after another."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from stratum import cost, storage
from stratum.data.source import load_data
from stratum.training.appraise import TIMED_IMAGES, scaled, store_costs
from stratum.tuning.pareto import OBJECTIVES, pareto_front
from stratum.tuning.spec import SweepSpec
from stratum.tuning.sweep import TrialRow
from stratum.tuning.trial import without_resizing
from stratum_models.catalog import build_model
from stratum_models.interface import SegmentationModel
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import load_package

SEARCH_FINALISTS = 6


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A package to time; ``overrides`` are the variant's."""

    name: str
    package: str
    preset: str
    overrides: Mapping[str, object]


def front(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The finished trials that no other beats in AP50, multiply-adds and size together."""
    finished = [row for row in rows if row.state == "finished"]
    return [finished[index] for index in pareto_front([row.metrics for row in finished], OBJECTIVES)]


def choose_finalists(rows: Sequence[TrialRow], sweep: SweepSpec) -> list[TrialRow]:
    """What is timed: of a grid every finished trial, of a search the best of the Pareto front by utility."""
    finished = [row for row in rows if row.state == "finished" and row.package]
    if sweep.space != "search":
        return finished[: sweep.finalists or None]
    names = {row.name for row in front(rows)}
    ranked = sorted((row for row in finished if row.name in names), key=lambda row: -sweep.tradeoff.utility(row.metrics))
    return ranked[: sweep.finalists or SEARCH_FINALISTS]


def winner(rows: Sequence[TrialRow], sweep: SweepSpec) -> TrialRow | None:
    """The finished trial with the highest utility; None where none finished."""
    finished = [row for row in rows if row.state == "finished" and row.package]
    return max(finished, key=lambda row: sweep.tradeoff.utility(row.metrics), default=None)


def measure(rows: Sequence[TrialRow], sweep: SweepSpec) -> dict[str, dict[str, float]]:
    """``cost/latency_ms``, ``cost/latency_ratio`` (to the first) and ``cost/infer_memory_mb`` by trial, measured in one Ray task.

    The task asks for all CPUs of a node (or a GPU), so that nothing of this cluster runs beside it.
    """
    finalists = [
        Finalist(name=row.name, package=row.package, preset=row.preset, overrides=row.overrides) for row in rows if row.package is not None
    ]
    if not finalists:
        return {}
    cpus = max(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    task = ray.remote(num_cpus=cpus, num_gpus=int(sweep.base.use_gpu), max_retries=1)(_measure)
    found: dict[str, dict[str, float]] = ray.get(task.remote(finalists, sweep))
    return found


def with_costs(rows: Sequence[TrialRow], costs: Mapping[str, Mapping[str, float]]) -> list[TrialRow]:
    """The rows with their measured costs, which are also written into their packages."""
    stored = []
    for row in rows:
        if row.package and row.name in costs:
            row = replace(row, metrics={**row.metrics, **costs[row.name]})
            store_costs(row.package or "", {name: value for name, value in row.metrics.items() if name.startswith("cost/")})
        stored.append(row)
    return stored


def timed_model(finalist: Finalist) -> SegmentationModel:
    """The package's network with its weights, taking images at the size they have."""
    loaded = load_package(storage.fetch_tree(finalist.package))
    manifest = loaded.manifest
    model = build_model(finalist.preset, num_classes=manifest.num_classes, overrides=without_resizing(manifest.overrides))
    model.load_state_dict(loaded.model.state_dict())
    return model.eval()


def _measure(finalists: list[Finalist], sweep: SweepSpec) -> dict[str, dict[str, float]]:
    """The body of the Ray task."""
    device = "cuda" if sweep.base.use_gpu else "cpu"
    threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    torch.set_num_threads(threads)
    models = {f.name: prepare_for_inference(timed_model(f).to(device)) for f in finalists}
    val = load_data(sweep.base.data).val
    images = [scaled(val[index].image, sweep.cost_size) for index in range(min(TIMED_IMAGES, len(val)))]
    timings = cost.time_models(models, images, repeats=sweep.timing_rounds)
    del models
    found: dict[str, dict[str, float]] = {}
    for finalist in finalists:
        timing = timings[finalist.name]
        found[finalist.name] = {"cost/latency_ms": timing.latency_ms, "cost/latency_ratio": timing.ratio}
        found[finalist.name] |= _memory(finalist, sweep, device, threads)
    return found


def _memory(finalist: Finalist, sweep: SweepSpec, device: str, threads: int) -> dict[str, float]:
    request: dict[str, Any] = {"preset": finalist.preset, "overrides": without_resizing(finalist.overrides), "size": sweep.cost_size}
    use = cost.peak_memory(cost.MemoryRequest(**request, device=device, threads=threads))
    return {"cost/infer_memory_mb": use.infer_mb}
