"""What is measured once a package is there: its costs beside its accuracy, and figures to look at."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from stratum import cost, storage
from stratum.data.source import Dataset
from stratum.inference.assess import assess, write_figures
from stratum.report.plots import training_plot
from stratum.training.engine import TrainResult
from stratum.training.spec import RunSpec
from stratum_models.catalog import build_model
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import MANIFEST_FILE, load_manifest, load_package

RESIZING = ("input_short", "input_long")  # options that change an image's size before the network sees it
TIMED_IMAGES = 4


def measured_costs(result: TrainResult, spec: RunSpec, data: Dataset, size: tuple[int, int]) -> dict[str, float]:
    """The costs of a run's package at ``(height, width)``: parameters, multiply-adds, size, latency with post-processing, memory.

    Latency is the median over validation images that are scaled to the size; nothing else should run meanwhile.
    """
    assert result.package is not None
    folder = storage.fetch_tree(result.package)
    loaded = load_package(folder)
    overrides = {name: value for name, value in loaded.manifest.overrides.items() if name not in RESIZING}
    model = build_model(loaded.manifest.preset, num_classes=loaded.manifest.num_classes, overrides=overrides)
    model.load_state_dict(loaded.model.state_dict())
    device = "cuda" if spec.use_gpu and torch.cuda.is_available() else "cpu"
    images = [scaled(data.val[index].image, size) for index in range(min(TIMED_IMAGES, len(data.val)))]
    timing = cost.time_models({spec.name: prepare_for_inference(model.eval().to(device))}, images, repeats=9)[spec.name]
    memory = cost.peak_memory(cost.MemoryRequest(preset=spec.model.preset, overrides=overrides, size=size, device=device))
    return {
        **cost.preset_cost(spec.model.preset, size, num_classes=loaded.manifest.num_classes, overrides=overrides),
        "cost/size_mb": cost.package_bytes(folder) / 2**20,  # of the package as it is stored, which --half makes smaller
        "cost/latency_ms": timing.latency_ms,
        "cost/infer_memory_mb": memory.infer_mb,
    }


def store_costs(package: str, costs: Mapping[str, float]) -> None:
    """Adds costs to the manifest of a package, so that it can be promoted by them."""
    manifest = load_manifest(storage.fetch_tree(package))
    text = replace(manifest, cost={**manifest.cost, **costs}).to_json()
    storage.write_bytes(storage.join(package, MANIFEST_FILE), text.encode())


def draw_figures(result: TrainResult, data: Dataset, folder: Path) -> None:
    """The curves of the training, and overlays, precision-recall and particle sizes of the package on the validation images."""
    assert result.package is not None
    training_plot(result.history, folder / "training.png")
    if data.task == "instance":
        loaded = load_package(storage.fetch_tree(result.package))
        write_figures(assess(loaded, data.val), data.classes, folder)


def scaled(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A uint8 image as ``float32 [3, H, W]`` in 0..1 of another size."""
    return interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True)[0].clamp(0, 1)
