"""IoU, pixel accuracy, Dice and boundary F-score of class masks, over a whole set of images and any number of workers.

All pixels of the set go into one confusion matrix ``P``, rows labelled and columns predicted, and the figures are taken from that: averages
over images would give an image without a rare class as much weight as one that is full of it. ``P_ij`` are pixels of class ``i`` that were
taken for ``j``. Mean IoU and mean pixel accuracy are the slag paper's Eqs. 3 and 4. A class of which no pixel is labelled in the whole set
is left out of every mean, and its own figure is NaN; where it was predicted all the same, that counts against the classes that were missed.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stratum.metrics.boundary import COLUMNS, boundary_counts, boundary_f
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget

TOLERANCE = 2.0  # pixels by which a boundary may be off
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class MaskRecord(TypedDict):
    """What is remembered of an image: plain values that JSON and pickle carry anywhere."""

    key: str | None  # what tells the image apart from the others, its URI as a rule
    confusion: list[int]  # K * K, row by row
    boundary: list[int]  # K * 4, see ``metrics.boundary.COLUMNS``
    refined: int | None  # patches that a second stage looked at


class SemanticEvaluator:
    """Gathers predicted and labelled class masks, and computes the figures of the whole set.

    Every worker updates its own evaluator; the ``state()`` of all is merged in one. Images with a key (their URI) are counted once, however
    often a padded sampler showed them. Ignored pixels count nowhere.

    Args:
        classes: their names, in the order of the labels.
        tolerance: of ``val/boundary_f``, in pixels.
    """

    def __init__(self, classes: Sequence[str], tolerance: float = TOLERANCE) -> None:
        if tolerance < 0:
            raise ValueError(f"a tolerance of {tolerance} pixels is below 0")
        self.classes = tuple(classes)
        self.tolerance = tolerance
        self._keys: set[str] = set()
        self._records: list[MaskRecord] = []

    def update(
        self, predictions: Sequence[SemanticPrediction], targets: Sequence[SemanticTarget], keys: Sequence[str] | None = None
    ) -> None:
        """Takes some images; one whose key is known already is not counted again.

        Raises ``ValueError`` where a prediction is not of its mask's size, has other classes, or a label lies outside the classes.
        """
        names: Sequence[str | None] = keys if keys is not None else [None] * len(predictions)
        for prediction, target, key in zip(predictions, targets, names, strict=True):
            if prediction.probabilities.shape[0] != len(self.classes):
                found = prediction.probabilities.shape[0]
                raise ValueError(f"{found} probabilities for each pixel of {key or 'the image'}, but there are {len(self.classes)} classes")
            self.update_labels(prediction.probabilities.detach().argmax(dim=0), target, key, prediction.refined)

    def update_labels(self, labels: Tensor, target: SemanticTarget, key: str | None = None, refined: int | None = None) -> None:
        """Takes the predicted classes ``[H, W]`` of one image: all that is left of one too large for its probabilities."""
        if key is None or key not in self._keys:
            self._add(self._record(labels, target.mask, key, refined))

    def state(self) -> list[MaskRecord]:
        """What was gathered, an image an entry."""
        return list(self._records)

    def merge(self, states: Iterable[MaskRecord]) -> None:
        """Takes over what another worker gathered; images that are known already are left out."""
        for record in states:
            if record["key"] is None or record["key"] not in self._keys:
                self._add(record)

    def confusion(self) -> Counts:
        """The confusion matrix of the whole set, int64 ``[K, K]``: rows are labelled, columns predicted."""
        size = len(self.classes)
        return self._sum("confusion", size * size).reshape(size, size)

    def compute(self) -> dict[str, float]:
        """``val/miou``, ``val/mpa``, ``val/pa``, ``val/dice``, ``val/boundary_f``, and of each class ``val/iou_<class>`` and
        ``val/dice_<class>``; NaN where nothing is labelled.

        ``val/foreground_dice`` is the mean without class 0. With a second stage, ``val/patches`` are those it looked at in an image, the
        mean over the set.
        """
        matrix = self.confusion()
        present = matrix.sum(axis=1) > 0
        iou, accuracy, dice = per_class(matrix)
        outlines = boundary_f(self._sum("boundary", len(self.classes) * len(COLUMNS)).reshape(-1, len(COLUMNS)))
        total = int(matrix.sum())
        means = {"val/miou": iou, "val/mpa": accuracy, "val/dice": dice, "val/boundary_f": outlines}
        metrics = {name: _mean(values[present]) for name, values in means.items()}
        metrics["val/pa"] = float(np.trace(matrix)) / total if total else float("nan")
        metrics["val/foreground_dice"] = _mean(dice[1:][present[1:]])
        refined = [record["refined"] for record in self._records if record["refined"] is not None]
        if refined and len(refined) == len(self._records):
            metrics["val/patches"] = float(np.mean(refined))
        for name, figures in (("iou", iou), ("dice", dice)):
            metrics |= {class_metric(name, label): float(value) for label, value in zip(self.classes, figures, strict=True)}
        return metrics

    def best_score_threshold(self) -> float:
        """0: each pixel gets its most probable class, whatever its probability."""
        return 0.0

    def _record(self, labels: Tensor, mask: Tensor, key: str | None, refined: int | None) -> MaskRecord:
        name, classes = key or "the image", len(self.classes)
        if labels.shape != mask.shape:
            found, wanted = ("x".join(str(side) for side in one.shape) for one in (labels, mask))
            raise ValueError(f"the prediction of {name} has {found} pixels, {wanted} are wanted: predict each class at the image's size")
        known = mask[mask != IGNORE_INDEX]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < classes:
            raise ValueError(f"labels {int(known.min())}..{int(known.max())} of {name} lie outside the {classes} classes")
        outlines = boundary_counts(labels.cpu().numpy(), mask.cpu().numpy(), classes, self.tolerance)
        return {
            "key": key,
            "confusion": confusion_of(labels, mask, classes).reshape(-1).tolist(),
            "boundary": outlines.reshape(-1).tolist(),
            "refined": refined,
        }

    def _add(self, record: MaskRecord) -> None:
        if len(record["confusion"]) != len(self.classes) ** 2:
            raise ValueError(f"what was gathered of {record['key'] or 'an image'} is not of {len(self.classes)} classes")
        if record["key"] is not None:
            self._keys.add(record["key"])
        self._records.append(record)

    def _sum(self, name: str, length: int) -> Counts:
        total = np.zeros(length, dtype=np.int64)
        for record in self._records:
            total += np.array(record[name], dtype=np.int64)  # type: ignore[literal-required]
        return total


def class_metric(name: str, label: str) -> str:
    """A metric of a class: ``val/iou_<class>``, without what MLflow allows in no name and the slash, at which its pages cut names."""
    return f"val/{name}_" + re.sub(r"[^\w.\- :]", "_", label)


def confusion_of(labels: Tensor, mask: Tensor, classes: int) -> Tensor:
    """The confusion matrix of one image, int64 ``[K, K]``, of predicted and labelled classes ``[H, W]``."""
    if classes < 2:
        count = int((mask != IGNORE_INDEX).sum())  # torchmetrics wants two classes at least
        return torch.full((classes, classes), count, dtype=torch.int64)
    # It brings SciPy's signals and matplotlib: a second of loading that all processes that judge no class masks are spared.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    target = mask.to(device=labels.device, dtype=torch.int64)
    matrix: Tensor = multiclass_confusion_matrix(labels, target, classes, ignore_index=IGNORE_INDEX, validate_args=False)
    return matrix


def per_class(matrix: Counts) -> tuple[Floats, Floats, Floats]:
    """IoU, pixel accuracy and Dice of each class ``[K]``; NaN where none of its pixels is labelled."""
    right = np.diag(matrix).astype(np.float64)
    labelled, predicted = matrix.sum(axis=1).astype(np.float64), matrix.sum(axis=0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = right / (labelled + predicted - right), right / labelled, 2 * right / (labelled + predicted)
    iou, accuracy, dice = (np.where(labelled > 0, value, np.nan) for value in values)
    return iou, accuracy, dice


def _mean(values: Floats) -> float:
    """The mean of what is known; a class that fills every labelled image has no boundary."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
