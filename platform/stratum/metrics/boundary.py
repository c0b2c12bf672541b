"""How well the outlines of classes are met: the boundary F-score with a tolerance in pixels (Csurka et al. 2013).

Shapes: ``H`` and ``W`` the size of an image, ``K`` classes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from stratum_models.interface import IGNORE_INDEX

Mask = NDArray[np.bool_]
COLUMNS = ("predicted_near", "predicted", "labelled_near", "labelled")


def boundary(region: Mask, known: Mask) -> Mask:
    """The pixels of a region ``[H, W]`` that touch a known pixel outside it, by one of their four sides.

    The image's edge is no boundary, and neither is the edge of what is not known.
    """
    outside = known & ~region
    touching = np.zeros_like(region)
    touching[1:] |= outside[:-1]
    touching[:-1] |= outside[1:]
    touching[:, 1:] |= outside[:, :-1]
    touching[:, :-1] |= outside[:, 1:]
    return region & touching


def near(mask: Mask, tolerance: float) -> Mask:
    """The pixels that are at most ``tolerance`` pixels, as the crow flies, from one of ``mask``; the same ``[H, W]``."""
    reach = math.floor(tolerance)
    height, width = mask.shape
    wide = np.zeros((height + 2 * reach, width + 2 * reach), dtype=np.bool_)
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            if down**2 + across**2 <= tolerance**2:
                top, left = reach + down, reach + across
                wide[top : top + height, left : left + width] |= mask
    return wide[reach : reach + height, reach : reach + width]


def boundary_counts(predicted: NDArray[np.integer], labelled: NDArray[np.integer], classes: int, tolerance: float) -> NDArray[np.int64]:
    """For each class, the boundary pixels of both sides and how many of them the other side has near: ``[K, 4]``, as :data:`COLUMNS`.

    What is ignored in ``labelled`` counts on neither side.
    """
    known = labelled != IGNORE_INDEX
    counts = np.zeros((classes, len(COLUMNS)), dtype=np.int64)
    present = set(np.unique(predicted[known]).tolist()) | set(np.unique(labelled[known]).tolist())
    for label in present:
        found = boundary((predicted == label) & known, known)
        true = boundary((labelled == label) & known, known)
        counts[label] = [
            np.count_nonzero(found & near(true, tolerance)),
            np.count_nonzero(found),
            np.count_nonzero(true & near(found, tolerance)),
            np.count_nonzero(true),
        ]
    return counts


def boundary_f(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The F-score of each class ``[K]`` from summed counts ``[K, 4]``; NaN where neither side has a boundary."""
    hits, found, met, true = counts.T.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.where(found > 0, hits / found, 0.0), np.where(true > 0, met / true, 0.0)
        score = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
    return np.where(found + true > 0, score, np.nan)
