"""The peak memory of models, each measured in a process of its own: ``python -m stratum.memory``.

It is the growth of the peak resident set (on CUDA, of the allocator's peak), counted from before the network is built, so that its weights
are in it. What only building and fusing took is not, since the peak is restarted after them. That takes Linux's ``/proc/self/clear_refs``;
elsewhere on the CPU the figure is the peak of all of it.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import stratum_models
from stratum.allocator import KEEPING
from stratum.cost import elapsed_ms, full_load_overrides, noise_image
from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget, SegmentationModel, SemanticTarget, Target

_MB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Growth of the peak memory in MB (2**20 bytes) for one image's ``predict`` and for a training step, and that step's time."""

    infer_mb: float
    train_mb: float | None
    train_step_ms: float | None


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What :func:`peak_memories` measures: a preset built with random weights, at ``(height, width)``; 0 images leave training out.

    ``train_size`` is that of the images of the training step, where it is another.
    """

    preset: str
    size: tuple[int, int]
    num_classes: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    train_batch: int = 0
    train_size: tuple[int, int] | None = None
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        for size in (self.size, self.train_size or self.size):
            if min(size) < 32:
                raise UserError(f"size {size} is too small to measure: give at least 32x32")
        if self.train_batch < 0:
            raise UserError(f"train_batch {self.train_batch} is negative: give 0 to leave training out")


def peak_memories(requests: Sequence[MemoryRequest], *, timeout_s: float = 600.0) -> list[MemoryUse | UserError]:
    """Measure each in a process of its own, or why that failed; they are forked off one that has imported what all of them need.

    ``timeout_s`` is for each on average.
    """
    if not requests:
        return []
    roots = [str(Path(module).parents[1]) for module in (__file__, stratum_models.__file__ or __file__)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {name: value for name, value in os.environ.items() if name not in KEEPING}  # the same figures whoever asks
    process = subprocess.Popen(
        [sys.executable, "-m", "stratum.memory", json.dumps([asdict(request) for request in requests])],
        env={**environment, "PYTHONPATH": os.pathsep.join(roots + inherited)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    late = ""
    try:
        answers, errors = process.communicate(timeout=timeout_s * len(requests))
    except subprocess.TimeoutExpired:
        late = f"not within {timeout_s * len(requests):.0f} s: use a smaller size or batch"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the process and the one that measures
    if late:
        answers, errors = process.communicate()
    found = [json.loads(line) for line in answers.splitlines() if line.startswith("{")]
    missing = {"error": late or (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]}
    found += [missing] * (len(requests) - len(found))
    return [
        UserError(f"memory of {request.preset} could not be measured: {values['error']}") if "error" in values else MemoryUse(**values)
        for request, values in zip(requests, found, strict=True)
    ]


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
    size = request.train_size or request.size
    images = [noise_image(size, seed).to(model.device) for seed in range(request.train_batch)]
    targets: list[Target] = [example_target(model, size).to(model.device) for _ in images]

    def step() -> None:
        optimiser.zero_grad()
        torch.stack(list(model.loss(images, targets).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    elapsed_ms(step)
    return elapsed_ms(step)


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
    """Print the :class:`MemoryUse` of each of a list of :class:`MemoryRequest`, or an ``error``, all as lines of JSON."""
    for values in json.loads(argument):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                print(json.dumps(_answer(values)), flush=True)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:  # one answer to each request
            print(json.dumps({"error": f"its process ended with {code}; -9 is what the system does when memory runs out"}), flush=True)


def _answer(values: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: tuple(values[name]) for name in ("size", "train_size") if values[name]}
    try:
        request = MemoryRequest(**{**values, **sizes})
        if request.threads:
            torch.set_num_threads(request.threads)
        return asdict(_measure(request))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[-1]}


if __name__ == "__main__":
    main(sys.argv[1])
