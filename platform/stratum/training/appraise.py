"""What is measured once a package is there: its costs beside its accuracy, and figures to look at."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from stratum import cost, storage
from stratum.data.source import Dataset
from stratum.inference.assess import assess
from stratum.inference.assess_masks import assess_masks
from stratum.memory import MemoryRequest, peak_memory
from stratum.report.plots import training_plot
from stratum.training.engine import TrainResult
from stratum.training.spec import RunSpec
from stratum_models.catalog import build_model
from stratum_models.interface import SegmentationModel
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import MANIFEST_FILE, load_manifest, load_package

TIMED_IMAGES = 4


def measured_costs(result: TrainResult, spec: RunSpec, data: Dataset, size: tuple[int, int]) -> dict[str, float]:
    """The costs of a run's package at ``(height, width)``: parameters, multiply-adds, size, latency with post-processing, memory.

    Latency is the median over validation images that are scaled to the size; nothing else should run meanwhile.
    """
    assert result.package is not None
    device = "cuda" if spec.use_gpu and torch.cuda.is_available() else "cpu"
    model = prepare_for_inference(timed_model(result.package).to(device))
    timing = cost.time_models({spec.name: model}, timed_images(data, size), repeats=9)[spec.name]
    overrides = cost.unresized(spec.model.overrides)
    classes = len(data.classes)
    memory = peak_memory(MemoryRequest(preset=spec.model.preset, num_classes=classes, overrides=overrides, size=size, device=device))
    return {
        **cost.preset_cost(spec.model.preset, size, num_classes=classes, overrides=overrides),
        "cost/size_mb": cost.package_bytes(storage.fetch_tree(result.package)) / 2**20,  # as stored: --half makes it smaller
        "cost/latency_ms": timing.latency_ms,
        "cost/infer_memory_mb": memory.infer_mb,
    }


def timed_model(package: str) -> SegmentationModel:
    """A package's network with its weights, taking images at the size they have."""
    loaded = load_package(storage.fetch_tree(package))
    manifest = loaded.manifest
    model = build_model(manifest.preset, num_classes=manifest.num_classes, overrides=cost.unresized(manifest.overrides))
    model.load_state_dict(loaded.model.state_dict())
    return model.eval()


def timed_images(data: Dataset, size: tuple[int, int]) -> list[torch.Tensor]:
    """A few validation images, scaled to the size that is named."""
    return [scaled(data.val[index].image, size) for index in range(min(TIMED_IMAGES, len(data.val)))]


def store_costs(package: str, costs: Mapping[str, float]) -> None:
    """Adds costs to the manifest of a package, so that it can be promoted by them."""
    manifest = load_manifest(storage.fetch_tree(package))
    text = replace(manifest, cost={**manifest.cost, **costs}).to_json()
    storage.write_bytes(storage.join(package, MANIFEST_FILE), text.encode())


def draw_figures(result: TrainResult, data: Dataset, folder: Path) -> None:
    """The curves of the training, and what :func:`assess` and :func:`assess_masks` draw of the package on the validation images."""
    assert result.package is not None
    training_plot(result.history, folder / "training.png")
    loaded = load_package(storage.fetch_tree(result.package))
    found = assess(loaded, data.val) if data.task == "instance" else assess_masks(loaded, data.val)
    found.draw(folder)


def scaled(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A uint8 image as ``float32 [3, H, W]`` in 0..1 of another size."""
    return interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True)[0].clamp(0, 1)
