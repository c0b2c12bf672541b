"""What readers know of one image before its pixels are needed, and what was wrong on the way there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from stratum.data.class_table import ClassTable
from stratum.data.palette import Naming

Severity = Literal["error", "warning"]
Rle = Mapping[str, object]  # pycocotools' compressed form: {"size": [H, W], "counts": bytes}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing found in a data set; an error keeps training from starting, a warning does not."""

    severity: Severity
    kind: str  # "missing file", "broken image", "clipped", ...
    uri: str
    detail: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.uri}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class RawAnnotation:
    """One instance as a COCO file has it, with its class already looked up."""

    name: str  # how messages call it
    label: int
    segmentation: object
    crowd: bool


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image that a data set lists, unread. ``size`` is what the labels claim, ``(H, W)``.

    With a ``table`` the labels come to one class mask: read from ``mask_uri``, or painted from the annotations where there is none.
    """

    uri: str
    annotations: tuple[RawAnnotation, ...] = ()
    mask_uri: str | None = None
    size: tuple[int, int] | None = None
    table: ClassTable | None = None
    colours: Naming | None = None  # of a colour-coded class mask


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One image that was read once and found good. Masks stay run-length encoded until a sample is asked for."""

    uri: str
    size: tuple[int, int]  # (H, W)
    labels: tuple[int, ...] = ()
    rles: tuple[Rle, ...] = ()
    crowd: tuple[bool, ...] = ()
    digest: str = ""  # SHA-256 of the file
    picture: str = ""  # SHA-256 of the decoded pixels: equal for the same picture in another file
    deep: bool = False  # 16 bits per channel
    rotate: bool = True  # whether the EXIF orientation is applied
    path: Path | None = None  # a local copy, where this machine has one
    pixels: Tensor | None = None  # uint8 [3, H, W], for scenes that are made and not read
    mask: bytes | None = None  # a packed class mask; None: instances
    pixel_counts: tuple[int, ...] = ()  # pixels of each class in the class mask
    window: tuple[int, int] | None = None  # (top, left) of the tile of ``size`` that this record stands for; None: the whole image
    file: str = ""  # where the image of a tile is; empty: at ``uri``

    @property
    def positive(self) -> bool:
        """Whether there is anything to find: an instance, or a second class."""
        return bool(self.labels) or sum(n > 0 for n in self.pixel_counts) > 1
