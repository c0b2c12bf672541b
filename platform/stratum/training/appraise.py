"""What is measured once a package is there: its costs beside its accuracy, and figures to look at."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from stratum import cost, storage
from stratum.data.source import Dataset
from stratum.inference.assess import assess
from stratum.inference.assess_masks import assess_masks
from stratum.memory import MemoryRequest, MemoryUse, peak_memories
from stratum.report.plots import training_plot
from stratum.training.engine import TrainResult
from stratum.training.spec import RunSpec
from stratum_models.catalog import build_model
from stratum_models.interface import SegmentationModel
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import MANIFEST_FILE, load_manifest, load_package

logger = logging.getLogger(__name__)
TIMED_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A package to measure; ``overrides`` are its network's."""

    name: str
    package: str
    preset: str
    overrides: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of packages by their names, and the ``device``, ``threads`` and ``size`` that they hold for."""

    figures: dict[str, dict[str, float]]
    setting: dict[str, str]

    @property
    def tags(self) -> dict[str, str]:
        """The setting as an MLflow run shows it."""
        return {f"stratum.cost_{name}": value for name, value in self.setting.items()}


def measure(packages: Sequence[Packaged], images: Sequence[torch.Tensor], spec: RunSpec, size: tuple[int, int], rounds: int) -> Costs:
    """``cost/latency_ms``, ``cost/latency_ratio`` (of several, to the first) and ``cost/infer_memory_mb`` at ``(height, width)``, and
    ``cost/train_step_ms`` and ``cost/train_memory_mb`` of a worker's part of a batch at the size that was trained.

    Latency is the median over ``images``, which have the size, post-processing included; memory and the training step are measured in a
    process of their own, and left out where that fails. Nothing else should run meanwhile.
    """
    device = "cuda" if spec.use_gpu and torch.cuda.is_available() else "cpu"
    threads = spec.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    timings: dict[str, cost.Timing] = {}
    for group in cost.timed_together(packages):
        models = {one.name: prepare_for_inference(timed_model(one.package).to(device)) for one in group}
        timings = cost.time_models(models, images, repeats=rounds) | timings
        del models
    memory = _memory(packages, spec, size, device, threads)
    figures = {
        one.name: {"cost/latency_ms": timings[one.name].latency_ms}
        | ({"cost/latency_ratio": timings[one.name].ratio} if len(packages) > 1 else {})
        | memory.get(one.name, {})
        for one in packages
    }
    setting = {"device": cost.device_name(device), "threads": str(threads), "size": "{}x{}".format(*size)}
    return Costs(figures=figures, setting=setting)


def _memory(packages: Sequence[Packaged], spec: RunSpec, size: tuple[int, int], device: str, threads: int) -> dict[str, dict[str, float]]:
    """By name, what could be measured: memory of ``predict``, memory and time of a training step, which may need more than there is."""
    requests = {
        one.name: MemoryRequest(
            preset=one.preset,
            num_classes=load_manifest(storage.fetch_tree(one.package)).num_classes,
            overrides=cost.unresized(one.overrides),
            size=size,
            train_size=trained_size(size, one.overrides, spec),
            train_batch=spec.train.part_size(spec.num_workers),
            device=device,
            threads=threads,
        )
        for one in packages
    }
    found: dict[str, dict[str, float]] = {}
    for left in (requests, {name: replace(request, train_batch=0) for name, request in requests.items()}):
        asked = {name: request for name, request in left.items() if name not in found}
        for name, use in zip(asked, peak_memories(list(asked.values())), strict=True):
            if isinstance(use, MemoryUse):
                found[name] = _figures(use)
            else:
                logger.warning("%s: %s", name, use)
    return found


def _figures(use: MemoryUse) -> dict[str, float]:
    values = {"infer_memory_mb": use.infer_mb, "train_memory_mb": use.train_mb, "train_step_ms": use.train_step_ms}
    return {f"cost/{name}": value for name, value in values.items() if value is not None}


def trained_size(size: tuple[int, int], overrides: Mapping[str, object], spec: RunSpec) -> tuple[int, int]:
    """``size`` shrunk or grown to the shorter side that images, or tiles, are scaled to; multiples of 32, as the network pads to."""
    tile = round(spec.data.tile * spec.augment.scale)
    short = int(str(overrides.get("input_short") or tile or min(size)))
    height, width = (max(32, round(side * short / min(size) / 32) * 32) for side in size)
    return height, width


def known_costs(result: TrainResult, spec: RunSpec, data: Dataset, size: tuple[int, int]) -> dict[str, float]:
    """The costs of a run's package that take no clock: parameters and multiply-adds at ``(height, width)``, and its size."""
    assert result.package is not None
    return {
        **cost.preset_cost(spec.model.preset, size, num_classes=len(data.classes), overrides=cost.unresized(spec.model.overrides)),
        "cost/size_mb": cost.package_bytes(storage.fetch_tree(result.package)) / 2**20,  # as stored: --half makes it smaller
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


def store_costs(package: str, costs: Mapping[str, float], setting: Mapping[str, str]) -> None:
    """Adds costs, and what they hold for, to the manifest of a package, so that it can be promoted by them."""
    manifest = load_manifest(storage.fetch_tree(package))
    text = replace(manifest, cost={**manifest.cost, **costs}, cost_setting=setting).to_json()
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
