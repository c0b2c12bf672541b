"""How good a package is on labelled images: AP, what its own score threshold gives, and particle sizes against the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratum.data.samples import SampleSet
from stratum.inference.outputs import instances_of, to_float, visible
from stratum.measurements import Comparison, Particle, SizeDistribution, compare, measure_instances, size_distribution
from stratum.metrics.instance import InstanceEvaluator, PrecisionRecall, match_instances
from stratum.report.overlays import contact_sheet, draw_instances
from stratum.report.plots import precision_recall_plot, size_plot
from stratum.training.progress import Say, say_nothing
from stratum_models.interface import InstancePrediction, InstanceTarget
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import LoadedModel, above_threshold

THUMBNAIL = 320  # pixels of the longer side on the sheet of overlays


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """An image with what was found and what is labelled, for the sheet."""

    uri: str
    image: Tensor  # uint8 [3, H, W]
    prediction: InstancePrediction
    target: InstanceTarget


@dataclass(frozen=True, eq=False, kw_only=True)
class Assessment:
    """The figures of a package on a set of images."""

    classes: tuple[str, ...]
    metrics: dict[str, float]
    images: int
    instances: int
    score_threshold: float
    curves: list[PrecisionRecall]
    predicted: SizeDistribution
    truth: SizeDistribution
    sizes: Comparison
    pictures: list[Picture]

    @property
    def title(self) -> str:
        """What was looked at."""
        return f"{self.images} images, {self.instances} instances"

    def record(self) -> dict[str, Any]:
        """What ``metrics.json`` says besides the metrics."""
        return {"instances": self.instances, "score_threshold": self.score_threshold, "sizes": self.sizes.record()}

    def rows(self) -> list[tuple[str, str, str]]:
        """What is compared with the truth: name, value, truth."""
        counts = str(self.sizes.predicted_count), str(self.sizes.true_count)
        rows = [(f"found (score from {self.score_threshold:.2f})", *counts)]
        for percent, size in self.sizes.d.items():
            found, true = (f"{side:.2f}" if side is not None else "-" for side in (size.predicted, size.truth))
            rows.append((f"D{percent} by volume ({self.sizes.unit})", found, true))
        gap = self.sizes.largest_gap
        return [*rows, ("largest gap of the passing curves", f"{gap:.3f}" if gap is not None else "-", "")]

    def draw(self, folder: Path) -> None:
        """Precision-recall, sizes and overlays as PNG files in ``folder``."""
        precision_recall_plot(self.curves, folder / "precision_recall.png", classes=self.classes)
        size_plot(self.predicted, self.truth, folder / "sizes.png")
        if self.pictures:
            _sheet(self.pictures, folder / "overlays.png")


def assess(
    loaded: LoadedModel,
    images: SampleSet,
    *,
    device: str = "cpu",
    batch_size: int = 4,
    mm_per_px: float | None = None,
    pictures: int = 12,
    say: Say = say_nothing,
) -> Assessment:
    """Predict every image once and compare with its labels.

    AP counts all predictions; precision, recall, F1 and sizes those that score at least the package's threshold.
    """
    manifest = loaded.manifest
    evaluator = InstanceEvaluator(manifest.num_classes)
    tally = _Tally()
    particles: dict[str, list[Particle]] = {"predicted": [], "truth": []}
    shown = chosen(len(images), pictures)
    kept: list[Picture] = []
    for index, (uri, image, target, prediction) in enumerate(_predicted(loaded, images, device, batch_size)):
        evaluator.update([prediction], [target], [uri])
        sure = visible(instances_of(above_threshold(prediction, manifest.score_threshold)))
        tally.add(sure, target)
        for name, side in (("predicted", sure), ("truth", target)):
            particles[name] += measure_instances(side, image=uri, classes=manifest.classes, mm_per_px=mm_per_px)
        if index in shown:
            kept.append(Picture(uri=uri, image=image, prediction=sure, target=target))
        if (index + 1) % 50 == 0:
            say(f"{index + 1}/{len(images)} images")
    predicted, truth = (size_distribution(particles[name]) for name in ("predicted", "truth"))
    return Assessment(
        classes=manifest.classes,
        score_threshold=manifest.score_threshold,
        metrics={**evaluator.compute(), **tally.figures()},
        images=len(images),
        instances=images.annotation_count,
        curves=evaluator.precision_recall(),
        predicted=predicted,
        truth=truth,
        sizes=compare(predicted, truth),
        pictures=kept,
    )


def chosen(images: int, pictures: int) -> frozenset[int]:
    """The indices of at most so many of the images, evenly spread."""
    return frozenset(range(0, images, max(1, -(-images // pictures)))) if pictures else frozenset()


def _sheet(pictures: Sequence[Picture], path: Path) -> Path:
    """What was found beside what is labelled, two images a row."""
    drawn: list[Tensor] = []
    captions: list[str] = []
    for picture in pictures:
        drawn += [draw_instances(picture.image, picture.prediction.masks), draw_instances(picture.image, picture.target.masks)]
        captions += [f"{picture.uri}: {len(picture.prediction)} found", f"{len(picture.target)} labelled"]
    return contact_sheet(drawn, path, columns=4, captions=captions, cell=THUMBNAIL)


def _predicted(
    loaded: LoadedModel, images: SampleSet, device: str, batch_size: int
) -> Iterator[tuple[str, Tensor, InstanceTarget, InstancePrediction]]:
    model = prepare_for_inference(loaded.model).to(device)
    for start in range(0, len(images), batch_size):
        samples = [images[index] for index in range(start, min(start + batch_size, len(images)))]
        with torch.inference_mode():
            predictions = model.predict([to_float(sample.image).to(device) for sample in samples])
        for sample, prediction in zip(samples, predictions, strict=True):
            assert isinstance(sample.target, InstanceTarget)  # a SampleSet holds nothing else
            yield sample.uri, sample.image, sample.target, instances_of(prediction.to("cpu"))


class _Tally:
    """Hits, false alarms and misses at IoU 0.5, over all images."""

    def __init__(self) -> None:
        self.hits = self.false_alarms = self.misses = 0

    def add(self, prediction: InstancePrediction, target: InstanceTarget) -> None:
        matches = match_instances(prediction, target)
        hits = sum(index >= 0 for index in matches.target_of)
        self.hits += hits
        self.false_alarms += len(matches.target_of) - hits - sum(matches.ignored)
        self.misses += len(matches.missed)

    def figures(self) -> dict[str, float]:
        precision = self.hits / max(self.hits + self.false_alarms, 1)
        recall = self.hits / max(self.hits + self.misses, 1)
        f1 = 2 * self.hits / max(2 * self.hits + self.false_alarms + self.misses, 1)
        return {"val/precision": precision, "val/recall": recall, "val/f1": f1}
