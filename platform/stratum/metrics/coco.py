"""COCO's evaluation (pycocotools) over the records of an evaluation.

pycocotools is called directly, not through torchmetrics' ``MeanAveragePrecision``: with any other limit than 100 detections torchmetrics
answers -1 for AP (it reads COCO's summary, which looks for 100); it always matches over four ranges of area, of which one is wanted here,
and takes three to four times as long; its mask states are tuples of bytes that JSON does not carry and that can hang when they are
synchronised under Ray; its IoU thresholds are rounded to float32, which moves AP by up to some 1e-3 on small masks; and it does not hand
out the matches, which the score threshold and the figures need. With the thresholds given to it in float64 its answer is the same, which a
test holds.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stratum.metrics.records import ImageRecord, InstanceRecord

Kind = Literal["mask", "box"]
IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())  # COCO's, to the last bit
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """COCO's answer. ``T`` IoU thresholds, ``R`` 101 recall levels, ``K`` classes; -1 where a class has no ground truth."""

    thresholds: Floats  # [T]
    recall_levels: Floats  # [R]
    precision: Floats  # [T, R, K]
    scores: Floats  # [T, R, K]: the score at which each recall is reached
    images: list[dict[str, Any]]  # pycocotools' matches, one per image and class that has anything

    def average_precision(self, threshold: float | None = None) -> float:
        """AP at one IoU threshold, or their mean; NaN if there is no ground truth."""
        chosen = self.precision if threshold is None else self.precision[np.isclose(self.thresholds, threshold)]
        known = chosen[chosen > -1]
        return float(known.mean()) if known.size else float("nan")


def evaluate(
    records: Sequence[ImageRecord], kind: Kind, *, num_classes: int, max_detections: int, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> Evaluation:
    """Runs COCO's protocol over all areas, with the ``max_detections`` best per image and class."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports each step on stdout
        run = COCOeval(_dataset(records, "target", num_classes), _dataset(records, "prediction", num_classes), _IOU_TYPES[kind])
        run.params.iouThrs = np.asarray(thresholds, dtype=np.float64)
        run.params.maxDets = [max_detections]  # `summarize` looks for 100 and answers -1: the arrays are read instead
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    return Evaluation(
        thresholds=run.params.iouThrs,
        recall_levels=np.asarray(run.params.recThrs),
        precision=run.eval["precision"][:, :, :, 0, 0],
        scores=run.eval["scores"][:, :, :, 0, 0],
        images=[image for image in run.evalImgs if image is not None],
    )


_IOU_TYPES: dict[Kind, str] = {"mask": "segm", "box": "bbox"}


def _dataset(records: Sequence[ImageRecord], side: Literal["target", "prediction"], num_classes: int) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records):
        annotations += _annotations(record[side], image_id, record["height"], record["width"])
    for number, annotation in enumerate(annotations, start=1):  # pycocotools takes an id of 0 for "no match"
        annotation["id"] = number
    data = COCO()
    data.dataset = {
        "images": [{"id": i, "height": record["height"], "width": record["width"]} for i, record in enumerate(records)],
        "categories": [{"id": label} for label in range(num_classes)],
        "annotations": annotations,
    }
    data.createIndex()
    return data


def _annotations(instances: InstanceRecord, image_id: int, height: int, width: int) -> list[dict[str, Any]]:
    rows = zip(*(instances[name] for name in ("boxes", "labels", "scores", "crowd", "masks")), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],  # only compared with the one range of area, which holds everything
            "iscrowd": int(crowd),
            "score": score,
            "segmentation": {"size": [height, width], "counts": code},
        }
        for box, label, score, crowd, code in rows
    ]
