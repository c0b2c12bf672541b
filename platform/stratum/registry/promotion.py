"""Choosing the version that carries an alias: the best by one figure among those within limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stratum.metrics.names import BEST_METRIC
from stratum.registry.packages import SETTING_TAG, known_models
from stratum.tracking.store import check_reachable, client_for, one_line_errors, tracking_uri
from stratum_models.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATA_TAG = "data_fingerprint"
UNMEASURED = {"cost/params", "cost/size_mb"}  # are what they are on any machine


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A registered version and its tags, of which numbers are figures."""

    version: str
    tags: Mapping[str, str]

    def figure(self, name: str) -> float | None:
        """The figure of that name, None where the version has none or it is not a number."""
        try:
            value = float(self.tags[name])
        except (KeyError, ValueError):
            return None
        return None if math.isnan(value) else value


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The version that was taken, and why each other was not."""

    name: str
    version: str
    alias: str
    metric: str
    value: float
    previous: str | None  # the version that had the alias before
    passed_over: tuple[tuple[str, str], ...]  # version and reason
    warnings: tuple[str, ...] = ()


def promote(name: str, metric: str = "", constraints: Sequence[str] = (), alias: str = "champion") -> Promotion:
    """Give ``alias`` to the version of ``name`` with the best ``metric``; costs and losses are better lower, all else higher.

    Without a metric it is the one by which training keeps its best weights, mask AP50 for instances and mean IoU for labelled pixels.
    ``constraints`` are maxima such as ``cost/latency_ms=40``; a version without that figure is not taken. The newer of equals wins.
    Raises UserError where no version qualifies; nothing is changed then.
    """
    limits = parse_limits(constraints)
    uri = tracking_uri()
    check_reachable(uri)
    client = client_for(uri)
    with one_line_errors(uri):
        candidates = _candidates(client, name)
        metric = metric or usual_metric(candidates)
        best, passed_over = choose(candidates, metric, limits)
        if best is None:
            reasons = "; ".join(f"version {version} {reason}" for version, reason in passed_over)
            raise UserError(f"no version of {name} can be promoted: {reasons}")
        previous = client.get_registered_model(name).aliases.get(alias)
        client.set_registered_model_alias(name, alias, best.version)
    return Promotion(
        name=name,
        version=best.version,
        alias=alias,
        metric=metric,
        value=best.figure(metric) or 0.0,
        previous=str(previous) if previous is not None else None,
        passed_over=passed_over,
        warnings=_warnings(candidates, (metric, *limits)),
    )


def choose(
    candidates: Sequence[Candidate], metric: str, limits: Mapping[str, float]
) -> tuple[Candidate | None, tuple[tuple[str, str], ...]]:
    """The best candidate within the limits, None where there is none, and for each other why it was not taken."""
    refused = {candidate.version: reason for candidate in candidates if (reason := _refusal(candidate, metric, limits))}
    sign = -1.0 if lower_is_better(metric) else 1.0
    fit = [candidate for candidate in candidates if candidate.version not in refused]
    best = max(fit, key=lambda one: (sign * (one.figure(metric) or 0.0), int(one.version)), default=None)
    for candidate in fit:
        if best is not None and candidate is not best:
            refused[candidate.version] = f"has {metric} {candidate.figure(metric):.4g}, version {best.version} {best.figure(metric):.4g}"
    return best, tuple(sorted(refused.items(), key=lambda item: int(item[0])))


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this figure is the better one."""
    return metric.startswith("cost/") or "loss" in metric


def parse_limits(constraints: Sequence[str]) -> dict[str, float]:
    """``["cost/latency_ms=40"]`` as ``{"cost/latency_ms": 40.0}``. Raises UserError for anything else."""
    limits = {}
    for constraint in constraints:
        key, _, value = constraint.replace("<=", "=").partition("=")
        try:
            limits[key.strip()] = float(value)
            if math.isnan(limits[key.strip()]):
                raise ValueError
        except ValueError:
            raise UserError(f"limit {constraint!r}: write a figure and its maximum, such as cost/latency_ms=40") from None
    return limits


def _candidates(client: "MlflowClient", name: str) -> list[Candidate]:
    versions = [] if "'" in name else list(client.search_model_versions(f"name = '{name}'", max_results=10_000))
    if not versions:
        raise UserError(
            f"no version of a model named {name!r} is registered (known models: {known_models(client)}): train one with --register"
        )
    return [Candidate(version=str(found.version), tags=found.tags) for found in versions]


def usual_metric(candidates: Sequence[Candidate]) -> str:
    """Of the metrics that training keeps its best weights by, the one that most versions have."""
    return max(BEST_METRIC.values(), key=lambda metric: sum(candidate.figure(metric) is not None for candidate in candidates))


def _refusal(candidate: Candidate, metric: str, limits: Mapping[str, float]) -> str:
    """Why a candidate cannot be taken, empty where it can."""
    for key in (metric, *limits):
        if candidate.figure(key) is None:
            known = sorted(name for name in candidate.tags if "/" in name)
            return f"has no {key} (it has {', '.join(known) or 'no figures'})"
    for key, limit in limits.items():
        found = candidate.figure(key)
        if found is not None and found > limit:
            return f"has {key} {found:.4g}, above {limit:.4g}"
    return ""


def _warnings(candidates: Sequence[Candidate], names: Sequence[str]) -> tuple[str, ...]:
    """What makes the figures of these names other than comparable."""
    found = []
    for name in sorted(set(names) - UNMEASURED):
        timed = name.startswith("cost/")
        tag = SETTING_TAG if timed else DATA_TAG
        values = {candidate.tags.get(tag, "") for candidate in candidates if candidate.figure(name) is not None}
        if len(values) > 1:
            where = "; ".join(sorted(value or "not noted" for value in values)) if timed else f"{len(values)} different data sets"
            found.append(f"the versions were measured on {where}: their {name} is not comparable")
    return tuple(found)
