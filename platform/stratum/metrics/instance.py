"""Average precision, curves and the score threshold of instance segmentation, gathered image by image over any number of workers.

The figures are COCO's, from pycocotools (``metrics/coco.py`` says why not through torchmetrics), with up to 300 detections per image and
class instead of COCO's 100: a belt shows more stones than a street shows cars.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stratum.metrics.coco import Evaluation, Floats, Kind, evaluate
from stratum.metrics.records import ImageRecord, image_record
from stratum_models.interface import InstancePrediction, InstanceTarget

KINDS: tuple[Kind, ...] = ("mask", "box")
DEFAULT_SCORE_THRESHOLD = 0.5  # where validation cannot tell: nothing labelled, or nothing found


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """The precision-recall curve of one class, as COCO interpolates it: 101 levels of recall, 0 to 1."""

    label: int
    recall: list[float]
    precision: list[float]
    scores: list[float]  # the score that must be asked for to reach each recall; 0 where it is never reached
    average_precision: float


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Keeping what scores at least ``threshold`` gives this precision, recall and F1 at IoU 0.5, over all classes together."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class InstanceMatches:
    """Which prediction found which labelled instance of one image.

    ``target_of`` has the index of the target for each prediction, -1 for a false positive; ``ignored`` marks predictions on a crowd region,
    which are neither right nor wrong; ``missed`` has the indices of the targets that nothing found.
    """

    target_of: list[int]
    ignored: list[bool]
    missed: list[int]


class InstanceEvaluator:
    """Gathers predictions and labels, and computes COCO's average precision of masks and boxes.

    Masks are run-length coded as they come, so that memory grows by some hundred bytes an instance. Every worker updates its own
    evaluator; the ``state()`` of all, gathered, is merged in one::

        for state in context.gather(evaluator.state()): total.merge(state)

    Images with a key (their URI) are counted once, however often a padded sampler showed them, and in the order of the keys, so that the
    figures do not depend on the number of workers. Images without a key are counted as they come.
    """

    def __init__(self, num_classes: int, max_detections: int = 300) -> None:
        if num_classes < 1 or max_detections < 1:
            raise ValueError(f"num_classes and max_detections must be at least 1, got {num_classes} and {max_detections}")
        self.num_classes = num_classes
        self.max_detections = max_detections
        self._records: list[ImageRecord] = []
        self._keys: set[str] = set()
        self._evaluations: dict[Kind, Evaluation] = {}

    def __len__(self) -> int:
        return len(self._records)

    def update(
        self, predictions: Sequence[InstancePrediction], targets: Sequence[InstanceTarget], keys: Sequence[str] | None = None
    ) -> None:
        """Adds a batch: one prediction, one target and (where given) one key per image."""
        names: Sequence[str | None] = keys if keys is not None else [None] * len(targets)
        for prediction, target, key in zip(predictions, targets, names, strict=True):
            if key is None or key not in self._keys:
                self._add(image_record(prediction, target, key))

    def state(self) -> list[ImageRecord]:
        """All that was gathered, as plain lists, dictionaries, numbers and strings."""
        return list(self._records)

    def merge(self, states: Iterable[ImageRecord]) -> None:
        """Adds the ``state()`` of another evaluator; images whose key is already here are left out."""
        for record in states:
            if record["key"] is None or record["key"] not in self._keys:
                self._add(record)

    def compute(self) -> dict[str, float]:
        """AP (mean of IoU 0.50 to 0.95), AP50 and AP75 of masks and boxes, in 0..1.

        A class without labelled instances does not count; with labelled instances and no prediction AP is 0. Where no class has any
        labelled instance, AP has no value and is NaN.
        """
        metrics: dict[str, float] = {}
        for kind in KINDS:
            answer = self._evaluate(kind)
            metrics[f"val/{kind}_ap"] = answer.average_precision()
            metrics[f"val/{kind}_ap50"] = answer.average_precision(0.5)
            metrics[f"val/{kind}_ap75"] = answer.average_precision(0.75)
        return metrics

    def precision_recall(self, kind: Kind = "mask") -> list[PrecisionRecall]:
        """The curves at IoU 0.5 of the classes that have labelled instances."""
        answer = self._evaluate(kind)
        precision, scores = answer.precision[0], answer.scores[0]  # [R, K]
        return [
            PrecisionRecall(
                label=label,
                recall=answer.recall_levels.tolist(),
                precision=precision[:, label].tolist(),
                scores=scores[:, label].tolist(),
                average_precision=float(precision[:, label].mean()),
            )
            for label in range(self.num_classes)
            if precision[0, label] > -1
        ]

    def operating_point(self, kind: Kind = "mask") -> OperatingPoint:
        """The score threshold of the highest F1 at IoU 0.5, classes pooled; 0.5 with zeros where nothing was labelled or found.

        The threshold lies midway between the lowest score it keeps and the next, so that rounding on another machine changes nothing.
        """
        scores, hits, positives = self._ranked(kind)
        if positives == 0 or not hits.any():
            return OperatingPoint(threshold=DEFAULT_SCORE_THRESHOLD, precision=0.0, recall=0.0, f1=0.0)
        found = np.cumsum(hits)
        kept = np.arange(1, len(scores) + 1)
        f1 = 2 * found / (kept + positives)
        f1[:-1][scores[:-1] == scores[1:]] = 0.0  # equal scores are kept together
        best = int(f1.argmax())
        below = scores[best + 1] if best + 1 < len(scores) else scores[best]
        return OperatingPoint(
            threshold=float((scores[best] + below) / 2),
            precision=float(found[best] / kept[best]),
            recall=float(found[best] / positives),
            f1=float(f1[best]),
        )

    def best_score_threshold(self, kind: Kind = "mask") -> float:
        """The score threshold of :meth:`operating_point`, to be stored beside the weights."""
        return self.operating_point(kind).threshold

    def _add(self, record: ImageRecord) -> None:
        for side in (record["target"], record["prediction"]):
            if side["labels"] and not 0 <= min(side["labels"]) <= max(side["labels"]) < self.num_classes:
                found = sorted({label for label in side["labels"] if not 0 <= label < self.num_classes})
                raise ValueError(f"labels {found} of {record['key'] or 'an image'} lie outside the {self.num_classes} classes")
        if record["key"] is not None:
            self._keys.add(record["key"])
        self._records.append(record)
        self._evaluations.clear()

    def _evaluate(self, kind: Kind) -> Evaluation:
        if kind not in self._evaluations:
            records = sorted(self._records, key=lambda record: record["key"] or "")  # a stable sort: without keys nothing moves
            self._evaluations[kind] = evaluate(records, kind, num_classes=self.num_classes, max_detections=self.max_detections)
        return self._evaluations[kind]

    def _ranked(self, kind: Kind) -> tuple[Floats, npt.NDArray[np.bool_], int]:
        """Scores of all detections, best first, whether each is right at IoU 0.5, and the number of labelled instances."""
        images = self._evaluate(kind).images
        positives = sum(int(np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)) for image in images)
        if not images:
            return np.zeros(0), np.zeros(0, dtype=bool), positives
        scores = np.concatenate([np.asarray(image["dtScores"], dtype=np.float64) for image in images])
        counted = ~np.concatenate([image["dtIgnore"][0] for image in images]).astype(bool)
        hits = np.concatenate([image["dtMatches"][0] for image in images]) > 0
        order = np.argsort(-scores[counted], kind="stable")
        return scores[counted][order], hits[counted][order], positives


def match_instances(
    prediction: InstancePrediction, target: InstanceTarget, *, iou: float = 0.5, score_threshold: float = 0.0, kind: Kind = "mask"
) -> InstanceMatches:
    """Matches one image as COCO does (best score first, same class, each label once), for figures and error analysis.

    Predictions below ``score_threshold`` are not matched; in ``target_of`` they are -1 like the false positives.
    """
    kept = [index for index, score in enumerate(prediction.scores.tolist()) if score >= score_threshold]
    chosen = InstancePrediction(
        boxes=prediction.boxes[kept], scores=prediction.scores[kept], labels=prediction.labels[kept], masks=prediction.masks[kept]
    )
    labels = [*target.labels.tolist(), *chosen.labels.tolist(), 0]
    answer = evaluate(
        [image_record(chosen, target, None)], kind, num_classes=max(labels) + 1, max_detections=max(1, len(kept)), thresholds=[iou]
    )
    target_of, ignored = [-1] * len(prediction), [False] * len(prediction)
    for image in answer.images:
        for dt_id, gt_id, skip in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
            index = kept[int(dt_id) - 1]
            ignored[index] = bool(skip)
            target_of[index] = -1 if skip else int(gt_id) - 1
    crowd = target.crowd.tolist()
    missed = [index for index in range(len(target)) if index not in set(target_of) and not crowd[index]]
    return InstanceMatches(target_of=target_of, ignored=ignored, missed=missed)
