"""The height of the slag band: with which classes and which scale it is measured, and how near it comes to the labels' over many images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from stratum.measurements import check_scale
from stratum.slag import Found, SlagBand, check_diameter, measure_slag
from stratum_models.errors import UserError
from stratum_models.package import Manifest

TUBE, SLAG = "tube", "slag"


@dataclass(frozen=True, kw_only=True)
class BandRule:
    """How the band of slag on a dip tube is measured where a model knows both; also the flags of the jobs that find classes."""

    mm_per_px: float | None = None
    """Millimetres per pixel; sizes are in pixels without it."""
    tube_diameter_mm: float | None = None
    """Outer diameter of the dip tube, instead of --mm-per-px, where the classes give the height of the slag's band."""
    axis_degrees: float | None = None
    """Direction of the dip tube, if known: 0 along the image's width, 90 upright."""
    tube_class: str = TUBE
    """Class of the dip tube; with --slag-class it says of which models the height of the slag's band is measured."""
    slag_class: str = SLAG
    """Class of the slag on the tube."""

    def __post_init__(self) -> None:
        check_scale(self.mm_per_px)
        check_diameter(self.tube_diameter_mm, self.mm_per_px)

    def knows_slag(self, classes: Sequence[str]) -> bool:
        """Whether the band can be measured with these classes."""
        return self.tube_class in classes and self.slag_class in classes

    def band(self, found: Found, classes: Sequence[str]) -> tuple[SlagBand | None, str]:
        """The band of one image, or why there is none; neither with other classes."""
        if not self.knows_slag(classes):
            return None, ""
        try:
            band = measure_slag(
                found,
                tube=classes.index(self.tube_class),
                slag=classes.index(self.slag_class),
                mm_per_px=self.mm_per_px,
                tube_diameter_mm=self.tube_diameter_mm,
                axis_degrees=self.axis_degrees,
            )
        except UserError as error:  # of this image alone: no tube, no slag, or no axis
            return None, str(error)
        return band, ""

    def unfit(self, classes: Sequence[str]) -> list[str]:
        """The options that are given although the band cannot be measured with these classes."""
        usual = {"tube_diameter_mm": None, "axis_degrees": None, "tube_class": TUBE, "slag_class": SLAG}
        return [] if self.knows_slag(classes) else [name for name, value in usual.items() if getattr(self, name) != value]

    def missing(self, classes: Sequence[str]) -> str:
        """Why the band cannot be measured with these classes."""
        return f"the band of slag needs the classes {self.tube_class} and {self.slag_class}, these are {', '.join(classes)}"


def check_band(rule: BandRule, manifest: Manifest) -> None:
    """Refuses a job's flags for the band of slag where a package knows none. Raises UserError."""
    if unfit := rule.unfit(manifest.classes if manifest.task == "semantic" else ()):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unfit)
        raise UserError(f"{flags}: has no meaning here: {rule.missing(manifest.classes)}: say which with --tube-class and --slag-class")


class BandStudy:
    """Bands of labelled images; an image counts where the labels and what was found both have one."""

    def __init__(self, classes: Sequence[str], rule: BandRule) -> None:
        self._classes, self._rule = classes, rule
        self._bands: list[tuple[SlagBand, SlagBand]] = []  # found, labelled
        self._missed = 0

    def add(self, found: npt.NDArray[np.generic], mask: npt.NDArray[np.generic]) -> None:
        """One image: classes ``[H, W]`` as found and as labelled. An image whose labels have no band is left out."""
        truth, band = (self._rule.band(labels, self._classes)[0] for labels in (mask, found))
        if truth is None:
            return
        if band is None:
            self._missed += 1
        else:
            self._bands.append((band, truth))

    def metrics(self) -> dict[str, float]:
        """``val/slag_height_error_px`` and ``_mm``, the mean absolute errors, and ``val/slag_missed``, bands labelled and not found."""
        errors = {
            f"val/slag_height_error_{unit}": fmean(abs(found - truth) for found, truth in heights)
            for unit in ("px", "mm")
            if (heights := self._heights(unit))
        }
        return {"val/slag_missed": float(self._missed), **errors}

    def record(self) -> dict[str, Any]:
        """For ``metrics.json``: the heights, found and labelled, in the order of the images."""
        heights = {f"heights_{unit}": [list(pair) for pair in self._heights(unit)] for unit in ("px", "mm")}
        return {"slag": {"missed": self._missed, **heights}}

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value, truth."""
        rows = []
        for unit in ("px", "mm"):
            if heights := self._heights(unit):
                found, truth = (median(one) for one in zip(*heights, strict=True))
                name = f"height of the slag band, median of {len(heights)} images"
                rows.append((name, f"{found:.1f} {unit}", f"{truth:.1f} {unit}"))
        return rows

    def _heights(self, unit: str) -> list[tuple[float, float]]:
        """Found and labelled in px or mm; none in mm without a scale."""
        pairs = [tuple(getattr(band, f"height_{unit}") for band in pair) for pair in self._bands]
        return [(found, truth) for found, truth in pairs if found is not None]
