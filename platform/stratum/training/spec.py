"""What a run is: one frozen value, checked when it is made, stored beside what came out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stratum.data.source import DataSpec
from stratum.data.transforms import AugmentSpec
from stratum_models.errors import UserError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "step", "cosine", "poly"]
Precision = Literal["fp32", "bf16", "fp16"]

_POSITIVE = ("epochs", "batch_size", "accumulate", "evaluate_every", "checkpoint_every", "learning_rate", "ema_tau")
_DECAYS = ("weight_decay", "norm_weight_decay", "clip_norm")
_NOT_NEGATIVE = (*_DECAYS, "warmup_epochs", "patience", "time_budget_s", "mosaic_off_last", "loader_workers", "seed")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How a model is trained.

    ``batch_size`` counts the images of one optimiser step over all workers and all ``accumulate`` parts, so that the schedule means the
    same however a batch is split. What is learned is close but not equal: the losses divide by the positives of each part, so an instance
    weighs more in a part that has few, and BatchNorm sees one part of one worker (all workers with ``sync_bn``).
    """

    epochs: int = 50
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9  # of sgd; adamw's betas are momentum and 0.999
    nesterov: bool = False
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0  # of the weights of norms and of every bias
    schedule: Schedule = "step"
    milestones: tuple[float, ...] = (0.661, 0.806)  # of "step", as shares of the run; LosNet's 11,900 and 14,500 of 18,000 iterations
    gamma: float = 0.1  # of "step"
    power: float = 0.9  # of "poly"
    final_factor: float = 0.01  # of "cosine": the last learning rate over the first
    warmup_epochs: float = 1.0
    warmup_factor: float = 0.1
    clip_norm: float = 0.0  # 0: no clipping
    ema_decay: float = 0.0  # 0: no EMA
    ema_tau: float = 2000.0  # optimiser steps
    precision: Precision = "fp32"
    sync_bn: bool = False
    channels_last: bool = False
    evaluate_every: int = 1  # epochs
    checkpoint_every: int = 1  # epochs
    patience: int = 0  # evaluations without a better one before the run stops; 0: never
    time_budget_s: float = 0.0  # 0: none. Training stops early so that the evaluations still fit
    mosaic_off_last: int = 0  # epochs at the end without mosaic and copy-paste
    loader_workers: int = 0  # processes
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in _NOT_NEGATIVE:
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in 0..1, below 1")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in 0..1, below 1")
        _require(all(0 < m < 1 for m in self.milestones), "milestones", self.milestones, "shares of the run, between 0 and 1")
        plain = self.optimizer != "sgd" or self.momentum == 0
        _require(not (self.nesterov and plain), "nesterov", True, "off, or used with sgd and momentum")

    def check_batch(self, images: int, workers: int) -> None:
        """Refuses a batch that the data set or the workers cannot carry.

        Raises:
            UserError: the batch has more images than the data set, or does not split evenly.
        """
        if self.batch_size > images:
            raise UserError(f"the batch size {self.batch_size} is larger than the {images} training images: choose at most {images}")
        parts = workers * self.accumulate
        if self.batch_size % parts:
            split = f"{workers} workers x {self.accumulate} parts"
            raise UserError(f"the batch size {self.batch_size} does not split over {split}: choose a multiple of {parts}")

    def part_size(self, workers: int) -> int:
        """Images in one forward pass of one worker."""
        return self.batch_size // (workers * self.accumulate)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network: a preset of the catalog, what differs from it, and where its weights start."""

    preset: str = "losnet"
    overrides: Mapping[str, object] = field(default_factory=dict)
    init: str | None = None  # URI of a package to fine-tune; other classes are allowed
    backbone_weights: str | None = None  # "imagenet", a file, or none


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A whole run: what goes in, how it is trained, where the results go."""

    data: DataSpec
    model: ModelSpec
    storage: str  # URI of the folder that holds the run's own folder
    experiment: str
    name: str
    train: TrainSpec = field(default_factory=TrainSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    num_workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    max_failures: int = 3
    threads: int = 0  # of torch in each worker; 0: as the environment says
    overfit: int = 0  # trains and evaluates on the first n training images: a check that a network can learn them; 0: off
    half_package: bool = False

    def __post_init__(self) -> None:
        _require(self.num_workers > 0, "num_workers", self.num_workers, "above 0")
        _require(self.max_failures >= 0, "max_failures", self.max_failures, "0 or more")
        _require(self.overfit >= 0, "overfit", self.overfit, "0 or more")
        _require(self.cpus_per_worker > 0, "cpus_per_worker", self.cpus_per_worker, "above 0")
        _require(not self.train.sync_bn or self.use_gpu, "sync_bn", True, "off where there is no GPU: PyTorch has it for GPUs alone")
        _require(bool(self.name) and "/" not in self.name, "name", self.name, "a plain name without a slash")


def to_dict(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain JSON types, as it is stored beside the results."""
    return asdict(spec)


def from_dict(values: Mapping[str, Any]) -> RunSpec:
    """The spec that :func:`to_dict` stored."""
    return RunSpec(
        **{
            **values,
            "data": DataSpec(**values["data"]),
            "model": ModelSpec(**values["model"]),
            "train": TrainSpec(**_tuples(values["train"])),
            "augment": AugmentSpec(**_tuples(values["augment"])),
        }
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; the specs hold tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _require(condition: bool, name: str, found: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"{name} is {found!r}: it must be {wanted}")
