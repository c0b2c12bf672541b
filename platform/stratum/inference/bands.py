"""The height of the slag band as it is found, against the one that the labels give, over many images."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from stratum.slag import measure_slag
from stratum_models.errors import UserError

TUBE, SLAG = "tube", "slag"  # a model that knows both measures the slag's band on the tube


def knows_slag(classes: Sequence[str]) -> bool:
    """Whether the band of slag on a dip tube can be measured with these classes."""
    return TUBE in classes and SLAG in classes


class BandStudy:
    """Bands of labelled images; an image counts where the labels and what was found both have one."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._tube, self._slag = classes.index(TUBE), classes.index(SLAG)
        self._heights: list[tuple[float, float]] = []  # found, labelled
        self._missed = 0

    def add(self, found: npt.NDArray[np.generic], mask: npt.NDArray[np.generic]) -> None:
        """One image: classes ``[H, W]`` as found and as labelled. An image whose labels have no band is left out."""
        truth = self._height(mask)
        if truth is None:
            return
        height = self._height(found)
        if height is None:
            self._missed += 1
        else:
            self._heights.append((height, truth))

    def metrics(self) -> dict[str, float]:
        """``val/slag_height_error_px``, the mean absolute error, and ``val/slag_missed``, bands that were labelled and not found."""
        errors = [abs(found - truth) for found, truth in self._heights]
        return {"val/slag_missed": float(self._missed), **({"val/slag_height_error_px": fmean(errors)} if errors else {})}

    def record(self) -> dict[str, Any]:
        """For ``metrics.json``: the heights in pixels, found and labelled, in the order of the images."""
        return {"slag": {"missed": self._missed, "heights_px": [list(pair) for pair in self._heights]}}

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value, truth."""
        if not self._heights:
            return []
        found, truth = (median(heights) for heights in zip(*self._heights, strict=True))
        return [(f"height of the slag band, median of {len(self._heights)} images", f"{found:.1f} px", f"{truth:.1f} px")]

    def _height(self, classes: npt.NDArray[np.generic]) -> float | None:
        try:
            return measure_slag(classes, tube=self._tube, slag=self._slag).height_px
        except UserError:  # no tube, no slag, or no axis
            return None
