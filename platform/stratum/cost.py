"""What a model costs: parameters, multiply-adds, bytes and latency; its memory is measured in ``stratum.memory``.

- Multiply-adds are half of what torch's FlopCounter counts in ``predict`` of one noise image (it counts a multiply and an add as two).
  Built with :func:`dense_overrides` a detector keeps no instance, so what is counted is the part that runs whatever the image shows;
  the dynamic mask heads come on top of it per instance. What a semantic model does depends on the size of an image alone, so it is
  counted on the meta device, without weights, pixels or time.
- Latency is the whole of ``predict``, post-processing included. How long that part takes depends on how much is found, and random
  weights find nothing or everything. :func:`full_load_overrides` makes such models comparable: the score threshold is 0 and at most 100
  instances are kept, so every model fills its cap of proposals, runs NMS on them and makes masks for what is left.
- Models are timed in turn, one call each a round, so that a clock that drifts or a busy neighbour slows all of them; a ratio is the median
  of the rounds' ratios.
- Costs are those of the size that is named: options that resize images before the network are left out (:func:`unresized`).
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.batching import RESIZING
from stratum_models.catalog import CATALOG, build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel
from stratum_models.two_stage.config import TwoStageConfig

MAX_INSTANCES = 100
TOGETHER = 3  # models that are in memory and timed at once, beside the first, to which each is compared
_MB = 1024 * 1024
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The median latency in ms, and the median over the rounds of its ratio to the first model's in the same round."""

    latency_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Parameters, multiply-adds, and the bytes of all weights and buffers in float32."""

    params: int
    macs: int
    size_bytes: int


def parse_size(text: str) -> tuple[int, int]:
    """``"480x640"`` as ``(height, width)``. Raises UserError for anything else."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 32):
        raise UserError(f"size {text!r} is no HEIGHTxWIDTH of at least 32x32: write it like 480x640")
    return int(height), int(width)


def count_parameters(model: nn.Module) -> int:
    """The number of weights, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def state_bytes(model: nn.Module) -> int:
    """The bytes of all weights and buffers: what a package's ``weights.safetensors`` holds besides its header."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def package_bytes(folder: Path) -> int:
    """The bytes of all files of a model package."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def noise_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    """An image of uniform noise, ``float32 [3, H, W]`` in 0..1, the same for the same seed."""
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed), device="cpu")


def multiply_adds(model: SegmentationModel, size: tuple[int, int]) -> int:
    """Multiply-adds of ``predict`` on one noise image of ``(height, width)``; convolutions and matrix products are counted."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.predict([noise_image(size).to(model.device)])
    model.train(was_training)
    return int(counter.get_total_flops()) // 2


def unresized(overrides: Mapping[str, object]) -> dict[str, object]:
    """The overrides without those that resize images before the network, so that a cost is that of the size it is given for."""
    return {name: value for name, value in overrides.items() if name not in RESIZING}


def dense_overrides(preset: str, overrides: Mapping[str, object]) -> dict[str, object]:
    """The overrides with a score threshold just below 1, where the preset has one: nothing is kept, so only the dense part runs."""
    return {**overrides, **_known(preset, {"score_threshold": 0.9999})}


def full_load_overrides(preset: str, overrides: Mapping[str, object]) -> dict[str, object]:
    """The overrides with a score threshold of 0 and a cap of 100 instances, where the preset has them: post-processing at full load."""
    return {**overrides, **_known(preset, {"score_threshold": 0.0, "max_detections": MAX_INSTANCES})}


def _known(preset: str, wanted: Mapping[str, object]) -> dict[str, object]:
    if preset not in CATALOG:
        return {}  # build_model says which presets there are
    names = {f.name for f in fields(resolve_config(preset, {}))}
    return {name: value for name, value in wanted.items() if name in names}


def count(preset: str, size: tuple[int, int], *, num_classes: int = 1, overrides: Mapping[str, object] | None = None) -> Counts:
    """What a preset's dense part costs on one image of ``(height, width)``. Raises UserError where it cannot be built."""
    device = "meta" if preset in CATALOG and CATALOG[preset].task == "semantic" else "cpu"
    with torch.device(device):
        model = build_model(preset, num_classes=num_classes, overrides=dense_overrides(preset, overrides or {}))
        return Counts(params=count_parameters(model), macs=multiply_adds(model, size), size_bytes=state_bytes(model))


def preset_cost(
    preset: str, size: tuple[int, int], *, num_classes: int = 1, overrides: Mapping[str, object] | None = None
) -> dict[str, float]:
    """``cost/params``, ``cost/macs`` at ``(height, width)`` and ``cost/size_mb`` (2**20 bytes of float32) of a preset."""
    counts = count(preset, size, num_classes=num_classes, overrides=overrides)
    return {"cost/params": float(counts.params), "cost/macs": float(counts.macs), "cost/size_mb": counts.size_bytes / _MB}


def threshold_macs(preset: str, size: tuple[int, int], *, num_classes: int, overrides: Mapping[str, object]) -> tuple[float, float] | None:
    """The multiply-adds of a model that picks patches by a threshold, without any and of each; None for other models.

    How many it picks, images alone tell: what :func:`preset_cost` counts of such a model is the most that it can be.
    """
    config = resolve_config(preset, overrides)
    if not isinstance(config, TwoStageConfig) or config.pick != "threshold":
        return None
    none, one = (
        float(count(preset, size, num_classes=num_classes, overrides={**overrides, "pick": "count", "count": number, "cap": None}).macs)
        for number in (0, 1)
    )
    return none, one - none


def time_calls(calls: Mapping[str, Callable[[], object]], *, repeats: int = 15, warmup: int = 3) -> dict[str, Timing]:
    """Time callables in turn: ``warmup`` rounds that do not count, then ``repeats`` rounds of one call each."""
    if repeats < 1 or not calls:
        raise UserError(f"nothing to time: {len(calls)} models, {repeats} repeats: give at least one of each")
    for _ in range(warmup):
        for call in calls.values():
            elapsed_ms(call)
    rounds = [{name: elapsed_ms(call) for name, call in calls.items()} for _ in range(repeats)]
    first = next(iter(calls))
    return {
        name: Timing(
            latency_ms=statistics.median(r[name] for r in rounds),
            ratio=statistics.median(r[name] / max(r[first], 1e-9) for r in rounds),
        )
        for name in calls
    }


def timed_together(items: Sequence[Item]) -> Iterator[list[Item]]:
    """The models that are timed at once: the first, to which all are compared, with the next few, until all had their turn."""
    first, *others = items
    for start in range(0, max(1, len(others)), TOGETHER):
        yield [first, *others[start : start + TOGETHER]]


def time_models(
    models: Mapping[str, SegmentationModel], images: Sequence[Tensor], *, repeats: int = 15, warmup: int = 3
) -> dict[str, Timing]:
    """Time ``predict`` of several models in turn, one image a call; a round's image is the next of ``images``.

    The models are used as they come: fuse and move them first (``stratum_models.optimize.prepare_for_inference``).
    """

    def call(model: SegmentationModel) -> Callable[[], object]:
        turn = iter(range(sys.maxsize))
        return lambda: model.predict([images[next(turn) % len(images)].to(model.device)])

    with torch.no_grad():
        return time_calls({name: call(model) for name, model in models.items()}, repeats=repeats, warmup=warmup)


def device_name(device: str) -> str:
    """What a clock's device is called, such as ``NVIDIA H100`` or a CPU's model."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def elapsed_ms(call: Callable[[], object]) -> float:
    """The time of one call, the GPU's work included."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000
