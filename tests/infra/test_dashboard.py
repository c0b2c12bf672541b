"""Grafana's dashboard asks for metrics that somebody exports."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PANELS = json.loads((ROOT / "infra/compose/grafana/dashboards/stratum.json").read_text())["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
METRICS = sorted({name for expression in EXPRESSIONS for name in re.findall(r"\bray_\w+", expression)})


def own_metrics() -> set[str]:
    """The names of all gauges, counters and histograms of the code, as Prometheus shows them."""
    source = "\n".join(path.read_text() for folder in ("platform", "serve") for path in (ROOT / folder).rglob("*.py"))
    plain = set(re.findall(r'"(stratum_[a-z_]+)", "', source))
    counters = {f"{name}_total" for name in re.findall(r'Counter\("(stratum_[a-z_]+)"', source)}
    buckets = {f"{name}_bucket" for name in re.findall(r'Histogram\("(stratum_[a-z_]+)"', source)}
    return {f"ray_{name}" for name in plain | counters | buckets}


def rays_metrics() -> str:
    """What the dashboards that Ray itself brings ask for."""
    import ray

    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return "\n".join(path.read_text() for path in folder.glob("*.py"))


@pytest.mark.parametrize("name", METRICS)
def test_the_dashboard_asks_for_metrics_that_exist(name: str) -> None:
    if not name.startswith("ray_stratum_"):
        assert re.search(rf"\b{name}\b", rays_metrics()), name
    elif name.startswith("ray_stratum_train_") or (ROOT / "serve/stratum_serve/meters.py").exists():
        assert name in own_metrics(), name


def test_each_thing_an_operator_looks_for_has_a_panel() -> None:
    titles = " ".join(panel["title"] for panel in PANELS).lower()
    for thing in ("images per second", "loss", "gpus", "queue", "latency", "errors", "replicas"):
        assert thing in titles


def test_training_is_seen_in_what_ray_exports(ray_local: None) -> None:
    import ray

    from stratum.training.meters import TrainMeters

    meters = TrainMeters("seen")
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    meters.epoch({"train/loss": 1.5, "train/images_per_s": 7.0, "epoch": 3.0, "val/miou": 0.5})
    meters.epoch({"train/loss": float("nan"), "epoch": 4.0})
    wanted = {"ray_stratum_train_loss": 1.5, "ray_stratum_train_images_per_second": 7.0, "ray_stratum_train_epoch": 4.0}
    for _ in range(240):
        found = exported(address, "seen")
        if found == wanted:
            return
        time.sleep(0.25)
    assert found == wanted


def exported(address: str, run: str) -> dict[str, float]:
    text = urllib.request.urlopen(address, timeout=30).read().decode()
    lines = re.findall(rf'^(ray_stratum_train_\w+)\{{[^}}]*run="{run}"[^}}]*\}} (\S+)$', text, flags=re.MULTILINE)
    return {name: float(value) for name, value in lines}
