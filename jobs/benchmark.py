"""Compare models by what they cost: parameters, multiply-adds, bytes, latency, memory."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from stratum import cost, storage
from stratum.cli import run_job
from stratum.memory import MemoryRequest, peak_memories
from stratum.registry import fetch_package
from stratum.report.papers import as_in_paper, paper_table
from stratum.report.steps import step_table
from stratum.training.progress import duration, say_on_stdout
from stratum_models.catalog import CATALOG, build_model
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, SegmentationModel, Task
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import LoadedModel, load_package
from stratum_models.two_stage.model import STEPS, TwoStage

LEAST_CLASSES: dict[Task, int] = {"instance": 1, "semantic": 2}
SILENT_S = 10.0  # after which one is told how far it is
MEASURED = 8  # models whose memory is measured by the processes of one
T = TypeVar("T")
RANDOM_LOAD = f"random weights, score threshold 0, at most {cost.MAX_INSTANCES} instances"


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure and where to write it."""

    models: str = "losnet"
    """Presets, separated by commas, or "all". They get random weights; the first is what ratios refer to."""
    package: tuple[str, ...] = ()
    """Model packages (folders, s3://..., models:/NAME@ALIAS, runs:/ID/package), measured with their weights and after the presets."""
    size: str = "480x640"
    """Height x width of the image in pixels."""
    data: str = ""
    """A folder or URI of images to time on, resized to --size; noise where it is empty."""
    classes: int = 0
    """Number of classes of the presets; 0 takes 1 for a model that finds instances and 2 for one that labels pixels."""
    repeats: int = 15
    """Rounds that are timed; in each, every model predicts once."""
    train_batch: int = 0
    """Also measure the memory and time of a training step with this many images; 0 leaves it out."""
    threads: int = 0
    """Threads of PyTorch; 0 leaves its choice."""
    gpu: bool = False
    """Measure on the first GPU."""
    cost_only: bool = False
    """Leave out what must be timed or run: latency and memory."""
    json: str = ""
    """File to write the records to, local or s3://."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats}: give at least 1")
        if self.threads < 0:
            raise UserError(f"--threads {self.threads}: give at least 1, or 0 for PyTorch's choice")
        if self.gpu and not torch.cuda.is_available():
            raise UserError("--gpu: this machine has no usable GPU: leave the flag out")


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """One model to measure; ``loaded`` is set where it comes from a package, whose own resizing is left out of ``overrides``."""

    name: str
    preset: str
    overrides: dict[str, object]
    classes: int
    loaded: LoadedModel | None = None
    package_bytes: int | None = None

    def model(self) -> SegmentationModel:
        """The model to time, at the size it is given: with the package's weights, or random ones at full load."""
        full = self.overrides if self.loaded else cost.full_load_overrides(self.preset, self.overrides)
        model = build_model(self.preset, num_classes=self.classes, overrides=full)
        if self.loaded is not None:
            model.load_state_dict(self.loaded.model.state_dict())
        return model


def main(args: Args) -> None:
    """Print a table of what models cost, side by side, and write it as JSON.

    Latency includes post-processing. Presets get random weights with the score threshold at 0 and at most 100 instances kept, so that each
    fills its cap of proposals; packages run with their weights. A second table counts parameters and multiply-adds as the papers do,
    a third has the time of each step of two-stage models.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    size = cost.parse_size(args.size)
    if args.json:
        _check_writable(args.json)
    subjects = _presets(args) + [_packaged(uri) for uri in args.package]
    if len({s.name for s in subjects}) < len(subjects):
        raise UserError("the same model is named twice: name each preset and each package once")
    records = [_static_record(subject, size) for subject in _shown(subjects, "multiply-adds")]
    if not args.cost_only:
        _add_latency(records, subjects, args, size)
        _add_memory(records, subjects, args, size)
    console = Console(width=150)
    console.print(_table(records, size))
    if any(record["as_in_paper"] for record in records):
        console.print(paper_table(records))
    if any(record["stages_ms"] for record in records):
        console.print(step_table(records))
    if args.json:
        uri = storage.resolve(args.json)
        storage.write_json(uri, records)
        print(f"written: {uri}")


def _check_writable(target: str) -> None:
    """Raise UserError, before minutes of measuring, where the file cannot be written; nothing is left behind."""
    uri = storage.resolve(target)
    if storage.is_remote(uri):
        probe = f"{uri}.check"  # only writing tells whether a bucket is there and may be written
        storage.write_bytes(storage.join(probe, "empty"), b"")
        with contextlib.suppress(storage.StorageError):  # whoever may write need not be one who may delete
            storage.remove_tree(probe)
        return
    path = Path(uri)
    folder = next(parent for parent in path.parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is no folder that we may write to"
        raise UserError(f"--json {target}: cannot be written, {reason}: name a file in a folder of yours")


def _presets(args: Args) -> list[Subject]:
    names = [n for n in CATALOG if not n.endswith("_debug")] if args.models == "all" else [n for n in args.models.split(",") if n]
    unknown = [name for name in names if name not in CATALOG]
    if unknown:
        raise UserError(f"unknown preset {unknown[0]!r}: known are {', '.join(CATALOG)}")
    return [Subject(name=name, preset=name, overrides={}, classes=args.classes or LEAST_CLASSES[CATALOG[name].task]) for name in names]


def _packaged(uri: str) -> Subject:
    folder = fetch_package(uri)
    loaded = load_package(folder)
    name = uri.rstrip("/").removesuffix("/package").rsplit("/", 1)[-1]
    manifest = loaded.manifest
    return Subject(
        name=name,
        preset=manifest.preset,
        overrides=cost.unresized(manifest.overrides),
        classes=manifest.num_classes,
        loaded=loaded,
        package_bytes=cost.package_bytes(folder),
    )


def _static_record(subject: Subject, size: tuple[int, int]) -> dict[str, Any]:
    counts = cost.count(subject.preset, size, num_classes=subject.classes, overrides=subject.overrides)
    return {
        "model": subject.name,
        "preset": subject.preset,
        "task": CATALOG[subject.preset].task,
        "input": f"{size[0]}x{size[1]}",
        "classes": subject.classes,
        "params": counts.params,
        "macs": counts.macs,
        "size_bytes": counts.size_bytes if subject.package_bytes is None else subject.package_bytes,
        "weights": "random" if subject.loaded is None else "package",
        "latency_ms": None,
        "latency_ratio": None,
        "instances": None,
        "stages_ms": None,
        "peak_memory_mb": None,
        "train_memory_mb": None,
        "train_step_ms": None,
        "paper": CATALOG[subject.preset].paper,
        "as_in_paper": as_in_paper(subject.preset) if subject.loaded is None else None,
    }


def _shown(items: Sequence[T], step: str) -> Iterator[T]:
    """The items one after the other; where they take long, how many are done and the time left are printed now and then."""
    start = said = time.monotonic()
    for index, item in enumerate(items):
        now = time.monotonic()
        if now - said >= SILENT_S:
            said = now
            say_on_stdout(f"{step}: {index}/{len(items)} done, {duration((now - start) / index * (len(items) - index))} left")
        yield item


def _images(args: Args, size: tuple[int, int]) -> list[torch.Tensor]:
    if not args.data:
        return [cost.noise_image(size, seed) for seed in range(4)]
    from stratum.data.images import read_image

    uris = storage.list_files(args.data, suffixes=(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))[:8]
    if not uris:
        raise UserError(f"{args.data}: no images there: name a folder with PNG, JPEG, BMP or TIFF files")
    pixels = [read_image(uri, None)[None].float() / 255 for uri in uris]
    return [torch.nn.functional.interpolate(p, size, mode="bilinear", antialias=True)[0] for p in pixels]


def _add_latency(records: list[dict[str, Any]], subjects: list[Subject], args: Args, size: tuple[int, int]) -> None:
    images = _images(args, size)
    groups = list(cost.timed_together(list(zip(records, subjects, strict=True))))
    for pairs in _shown(groups, "latency"):
        _time_together(pairs, images, args)


def _time_together(pairs: list[tuple[dict[str, Any], Subject]], images: list[torch.Tensor], args: Args) -> None:
    """Fill in the latencies of some models; when this returns they are out of memory."""
    device = "cuda" if args.gpu else "cpu"
    models = {subject.name: prepare_for_inference(subject.model().to(device).eval()) for _, subject in pairs}
    timings = cost.time_models(models, images, repeats=args.repeats)
    for record, subject in pairs:
        timing = timings[subject.name]
        record.update(latency_ms=round(timing.latency_ms, 3), latency_ratio=round(timing.ratio, 4))
        record["instances"] = _found(models[subject.name], images)
        record["stages_ms"] = _stages(models[subject.name], images, args.repeats)
        record.update(device=device, threads=torch.get_num_threads(), repeats=args.repeats, images=args.data or "noise")
        record["load"] = RANDOM_LOAD if subject.loaded is None else "the package's weights, the preset's score threshold"


def _stages(model: SegmentationModel, images: list[torch.Tensor], repeats: int) -> dict[str, float] | None:
    """The median time of each step of a two-stage model, in ms; None for any other."""
    if not isinstance(model, TwoStage):
        return None
    rounds = [model.predict_timed([images[index % len(images)].to(model.device)])[1] for index in range(repeats)]
    return {step: round(1000 * statistics.median(one.get(step, 0.0) for one in rounds), 3) for step in STEPS}


def _found(model: SegmentationModel, images: list[torch.Tensor]) -> float | None:
    """The median number of instances in an image: what post-processing had to do."""
    with torch.no_grad():
        found = [model.predict([image.to(model.device)])[0] for image in images]
    counts = [len(p) for p in found if isinstance(p, InstancePrediction)]
    return statistics.median(counts) if counts else None


def _add_memory(records: list[dict[str, Any]], subjects: list[Subject], args: Args, size: tuple[int, int]) -> None:
    requests = [
        MemoryRequest(
            preset=subject.preset,
            overrides=subject.overrides,
            size=size,
            num_classes=subject.classes,
            train_batch=args.train_batch,
            device="cuda" if args.gpu else "cpu",
            threads=args.threads or None,
        )
        for subject in subjects
    ]
    starts = range(0, len(requests), MEASURED)
    found = [use for start in _shown(starts, "memory") for use in peak_memories(requests[start : start + MEASURED])]
    for record, use in zip(records, found, strict=True):
        if isinstance(use, UserError):
            raise use
        record.update(peak_memory_mb=round(use.infer_mb, 1), train_memory_mb=use.train_mb, train_step_ms=use.train_step_ms)


_COLUMNS = {
    "model": "model",
    "params": "parameters",
    "macs": "multiply-adds",
    "size_bytes": "size MB",
    "latency_ms": "latency ms",
    "latency_ratio": "ratio",
    "instances": "instances",
    "peak_memory_mb": "memory MB",
    "train_memory_mb": "training MB",
    "paper": "paper (ms / model MB)",
}


def _table(records: list[dict[str, Any]], size: tuple[int, int]) -> Table:
    table = Table(title=f"Cost at {size[0]}x{size[1]}, batch of one")
    columns = {key: title for key, title in _COLUMNS.items() if any(record[key] is not None for record in records)}
    for key, title in columns.items():
        table.add_column(title, justify="left" if key == "model" else "right")
    for record in records:
        table.add_row(*(_cell(key, record[key]) for key in columns))
    return table


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "paper":
        return f"{value.get('infer_ms', '-')} / {value.get('size_mb', value.get('size_mib', '-'))}"
    if key == "params":
        return f"{value / 1e6:.2f} M"
    if key == "macs":
        return f"{value / 1e9:.2f} G"
    if key == "size_bytes":
        return f"{value / 2**20:.2f}"
    if key == "latency_ratio":
        return f"{value:.2f}x"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_job(main, Args)
