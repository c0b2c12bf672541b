"""What a model costs: parameters, multiply-adds, bytes, latency and peak memory.

- Multiply-adds are half of what torch's FlopCounter counts in ``predict`` of one noise image (it counts a multiply and an add as two).
  Built with :func:`dense_overrides` a detector keeps no instance, so what is counted is the part that runs whatever the image shows;
  the dynamic mask heads come on top of it per instance.
- Latency is the whole of ``predict``, post-processing included. How long that part takes depends on how much is found, and random
  weights find nothing or everything. :func:`full_load_overrides` makes such models comparable: the score threshold is 0 and at most 100
  instances are kept, so every model fills its cap of proposals, runs NMS on them and makes masks for what is left.
- Models are timed in turn, one call each a round, so that a clock that drifts or a busy neighbour slows all of them; a ratio is the median
  of the rounds' ratios.
- Costs are those of the size that is named: options that resize images before the network are left out (:func:`unresized`).
- Memory is the growth of the peak resident set (on CUDA, of the allocator's peak) in a process of its own: ``python -m stratum.cost``.
  It counts from before the network is built, so its weights are in it; what only building and fusing took is not, since the peak is
  restarted after them. That takes Linux's ``/proc/self/clear_refs``; elsewhere on the CPU the figure is the peak of all of it.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stratum_models
from stratum_models.catalog import CATALOG, build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget, SegmentationModel, SemanticTarget, Target

MAX_INSTANCES = 100
RESIZING = ("input_short", "input_long")  # options that change an image's size before the network sees it
_MB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The median latency in ms, and the median over the rounds of its ratio to the first model's in the same round."""

    latency_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Growth of the peak memory in MB (2**20 bytes) for one image's ``predict`` and for a training step, and that step's time."""

    infer_mb: float
    train_mb: float | None
    train_step_ms: float | None


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What :func:`peak_memory` measures: a preset built with random weights, at ``(height, width)``; 0 images leave training out."""

    preset: str
    size: tuple[int, int]
    num_classes: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    train_batch: int = 0
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 32:
            raise UserError(f"size {self.size} is too small to measure: give at least 32x32")
        if self.train_batch < 0:
            raise UserError(f"train_batch {self.train_batch} is negative: give 0 to leave training out")


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
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


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


def preset_cost(
    preset: str, size: tuple[int, int], *, num_classes: int = 1, overrides: Mapping[str, object] | None = None
) -> dict[str, float]:
    """``cost/params``, ``cost/macs`` at ``(height, width)`` and ``cost/size_mb`` (2**20 bytes of float32) of a preset."""
    model = build_model(preset, num_classes=num_classes, overrides=dense_overrides(preset, overrides or {}))
    return {
        "cost/params": float(count_parameters(model)),
        "cost/macs": float(multiply_adds(model, size)),
        "cost/size_mb": state_bytes(model) / _MB,
    }


def time_calls(calls: Mapping[str, Callable[[], object]], *, repeats: int = 15, warmup: int = 3) -> dict[str, Timing]:
    """Time callables in turn: ``warmup`` rounds that do not count, then ``repeats`` rounds of one call each."""
    if repeats < 1 or not calls:
        raise UserError(f"nothing to time: {len(calls)} models, {repeats} repeats: give at least one of each")
    for _ in range(warmup):
        for call in calls.values():
            _elapsed_ms(call)
    rounds = [{name: _elapsed_ms(call) for name, call in calls.items()} for _ in range(repeats)]
    first = next(iter(calls))
    return {
        name: Timing(
            latency_ms=statistics.median(r[name] for r in rounds),
            ratio=statistics.median(r[name] / max(r[first], 1e-9) for r in rounds),
        )
        for name in calls
    }


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


def _elapsed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def peak_memory(request: MemoryRequest, *, timeout_s: float = 600.0) -> MemoryUse:
    """Measure in a new process. Raises UserError where that process fails, with the last line it wrote."""
    roots = [str(Path(module).parents[1]) for module in (__file__, stratum_models.__file__ or __file__)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots + inherited)}
    command = [sys.executable, "-m", "stratum.cost", json.dumps(asdict(request))]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"memory of {request.preset}: not measured within {timeout_s:.0f} s: use a smaller size or batch") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"memory of {request.preset} could not be measured: {reason}")
    return MemoryUse(**json.loads(done.stdout.strip().splitlines()[-1]))


def example_target(model: SegmentationModel, size: tuple[int, int]) -> Target:
    """Labels for a training step on an image of ``(height, width)``: a grid of 16 rectangles."""
    height, width = size
    if model.task == "semantic":
        return SemanticTarget(mask=torch.zeros(height, width, dtype=torch.int64))
    boxes, masks = [], torch.zeros(16, height, width, dtype=torch.bool)
    for index in range(16):
        top, left = (index // 4) * height // 4, (index % 4) * width // 4
        bottom, right = top + height // 5, left + width // 5
        boxes.append([left, top, right, bottom])
        masks[index, top:bottom, left:right] = True
    return InstanceTarget(
        boxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.zeros(16, dtype=torch.int64),
        masks=masks,
        crowd=torch.zeros(16, dtype=torch.bool),
    )


def _measure(request: MemoryRequest) -> MemoryUse:
    """The body of the process of its own."""
    from stratum_models.optimize import prepare_for_inference

    torch.manual_seed(0)
    device = torch.device(request.device)
    with torch.no_grad():  # a small model first: importing libraries and starting threads is no cost of the measured one
        build_model("losnet_debug", num_classes=1).to(device).eval().predict([noise_image((64, 64)).to(device)])
    baseline = _start_peak(device)
    overrides = full_load_overrides(request.preset, request.overrides)
    model = build_model(request.preset, num_classes=request.num_classes, overrides=overrides).to(device).eval()
    model = prepare_for_inference(model)
    _restart_peak(device)
    with torch.no_grad():
        for _ in range(2):  # the first call also makes the caches that stay
            model.predict([noise_image(request.size).to(device)])
    infer = _peak_mb(device) - baseline
    if not request.train_batch:
        return MemoryUse(infer_mb=infer, train_mb=None, train_step_ms=None)
    del model
    _restart_peak(device)
    model = build_model(request.preset, num_classes=request.num_classes, overrides=request.overrides).to(device).train()
    step_ms = _training_steps(model, request)
    return MemoryUse(infer_mb=infer, train_mb=_peak_mb(device) - baseline, train_step_ms=step_ms)


def _training_steps(model: SegmentationModel, request: MemoryRequest) -> float:
    """Two steps of SGD with momentum; the time of the second in ms."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    images = [noise_image(request.size, seed).to(model.device) for seed in range(request.train_batch)]
    targets: list[Target] = [example_target(model, request.size).to(model.device) for _ in images]

    def step() -> None:
        optimiser.zero_grad()
        torch.stack(list(model.loss(images, targets).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    _elapsed_ms(step)
    return _elapsed_ms(step)


def _restart_peak(device: torch.device) -> None:
    """Free what is no longer used, back to the system where glibc can, and forget the peak so far."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # no glibc: the heap keeps what was freed
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    _start_peak(device)


def _start_peak(device: torch.device) -> float:
    """Forget the peak so far; what is in use now, in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / _MB
    with contextlib.suppress(OSError):  # Linux: else a child counts what its parent held when it was forked
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb(device)


def _peak_mb(device: torch.device) -> float:
    """The peak since :func:`_start_peak` in MB; without /proc, since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MB
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / _MB if sys.platform == "darwin" else peak / 1024


def main(argument: str) -> None:
    """Print the :class:`MemoryUse` of a :class:`MemoryRequest`, both as JSON."""
    values = json.loads(argument)
    request = MemoryRequest(**{**values, "size": tuple(values["size"])})
    if request.threads:
        torch.set_num_threads(request.threads)
    print(json.dumps(asdict(_measure(request))))


if __name__ == "__main__":
    main(sys.argv[1])
