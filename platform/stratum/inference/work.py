"""What is to be predicted, and what comes back: plain values, so that they travel between driver and actors as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stratum.inference.bands import BandRule
from stratum.measurements import Particle
from stratum.slag import ClassArea, SlagBand
from stratum_models.errors import UserError

MaskFormat = Literal["tiff", "zarr"]


@dataclass(frozen=True, kw_only=True)
class BatchSpec(BandRule):
    """What to predict and how."""

    data: str  # a folder, a file, an s3:// prefix, or synthetic://
    storage: str
    score_threshold: float = 0.0  # of instances
    window: int = 0  # side of the windows in which a semantic model predicts larger images; 0: whole
    mask_format: MaskFormat = "tiff"  # of the masks of images that are too large to be read whole
    options: Mapping[str, str] = field(default_factory=dict)  # of the package's model, changed for this prediction
    overlays: bool = True
    batch_size: int = 4
    workers: int = 0  # actors; 0: as many as the cluster has CPUs or GPUs
    gpu: bool = False
    cpus: float = 1.0  # that each of them asks Ray for; 0: none, they take what the others on their machine leave
    resume: bool = False  # keep a record of each image, and skip those that have one

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window)
        if not 0 <= self.score_threshold <= 1:
            raise UserError(f"the score threshold is {self.score_threshold}, it must be between 0 and 1")
        if self.batch_size < 1 or self.workers < 0 or self.cpus < 0:
            raise UserError(f"batch size {self.batch_size}, workers {self.workers}, CPUs {self.cpus:g}: give at least 1, 0 and 0")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One image to predict: where it is, and the name of its results."""

    index: int
    uri: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in one image, or why it could not be read."""

    work: Work
    error: str = ""
    height: int = 0
    width: int = 0
    annotations: tuple[dict[str, Any], ...] = ()  # of instances
    particles: tuple[Particle, ...] = ()
    areas: tuple[ClassArea, ...] = ()  # of classes
    band: SlagBand | None = None  # of slag, for models that know tube and slag
    note: str = ""  # why there is no band, or how a scan was read
    refined: int | None = None  # patches of a scan that the second of two stages looked at
    patches: int | None = None  # that the scan has

    def to_json(self) -> str:
        """All fields as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Found":
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        band = values.pop("band")
        return cls(
            **{
                **values,
                "work": Work(**values["work"]),
                "annotations": tuple(values["annotations"]),
                "particles": tuple(Particle(**particle) for particle in values["particles"]),
                "areas": tuple(ClassArea(**area) for area in values["areas"]),
                "band": SlagBand(**band) if band else None,
            }
        )


def check_window(side: int) -> None:
    """Refuses windows in which no network sees anything. Raises UserError."""
    if side and side < 32:
        raise UserError(f"windows of {side} pixels are too small: give at least 32, or 0 for whole images")
