"""How good a semantic package is on labelled images: IoU and the like over the whole set, what is taken for what, and areas.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratum.data.samples import SampleSet
from stratum.inference.assess import THUMBNAIL, chosen
from stratum.inference.bands import BandRule, BandStudy
from stratum.inference.classes import ClassesFound, find_classes, labels_of
from stratum.inference.gates import GateStudy, gate_study
from stratum.inference.masks import shrunk
from stratum.metrics.semantic import Counts, SemanticEvaluator, per_class
from stratum.report.class_overlays import class_legend, draw_classes
from stratum.report.class_plots import class_bars, confusion_plot
from stratum.report.overlays import contact_sheet
from stratum.training.progress import Say, say_nothing
from stratum_models.interface import IGNORE_INDEX, SegmentationModel, SemanticPrediction, SemanticTarget
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import LoadedModel

DRAWN = 2 * THUMBNAIL  # pixels of the longer side at which a picture is kept until the sheet is made


@dataclass(frozen=True, eq=False, kw_only=True)
class Triple:
    """One image for the sheet: as it is, with what is labelled, and with what was found."""

    captions: tuple[str, str, str]
    pictures: tuple[Tensor, Tensor, Tensor]  # uint8 [3, h, w]
    unknown: bool  # whether some of it is not labelled


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskAssessment:
    """The figures of a semantic package on a set of images."""

    classes: tuple[str, ...]
    metrics: dict[str, float]
    images: int
    confusion: Counts  # [K, K]: rows are labelled, columns predicted
    pictures: list[Triple]
    gates: GateStudy | None
    bands: BandStudy | None

    @property
    def title(self) -> str:
        """What was looked at."""
        return f"{self.images} images"

    def record(self) -> dict[str, Any]:
        """What ``metrics.json`` says besides the metrics."""
        gates = self.gates.record() if self.gates else {}
        bands = self.bands.record() if self.bands else {}
        return {"classes": list(self.classes), "confusion": self.confusion.tolist(), **gates, **bands}

    def rows(self) -> list[tuple[str, str, str]]:
        """What is compared with the truth: name, value, truth."""
        everything = max(int(self.confusion.sum()), 1)
        found, true = (self.confusion.sum(axis=axis) / everything for axis in (0, 1))
        shares = [(f"share of {name}", f"{a:.2%}", f"{b:.2%}") for name, a, b in zip(self.classes, found, true, strict=True)]
        return shares + (self.bands.rows() if self.bands else [])

    def draw(self, folder: Path) -> None:
        """Confusion matrix, IoU of each class, overlays and what the gate did, as PNG files in ``folder``."""
        confusion_plot(self.confusion, self.classes, folder / "confusion.png")
        class_bars(per_class(self.confusion)[0].tolist(), self.classes, folder / "iou.png", label="IoU")
        if self.pictures:
            legend = class_legend(self.classes, unknown=any(triple.unknown for triple in self.pictures))
            drawn = [picture for triple in self.pictures for picture in triple.pictures]
            captions = [caption for triple in self.pictures for caption in triple.captions]
            contact_sheet(drawn, folder / "overlays.png", columns=6, captions=captions, cell=THUMBNAIL, legend=legend)
        if self.gates:
            self.gates.draw(folder)


def assess_masks(
    loaded: LoadedModel,
    images: SampleSet,
    *,
    device: str = "cpu",
    batch_size: int = 4,
    window: int = 0,
    pictures: int = 12,
    gates: int | None = None,
    band: BandRule | None = None,
    say: Say = say_nothing,
) -> MaskAssessment:
    """Predict every image once and compare with its labels; memory does not grow with the number of images.

    Args:
        loaded: the package.
        images: labelled with class masks.
        device: where to predict.
        batch_size: images (of one in windows: windows) that are predicted together.
        window: side of the windows for larger images; 0: all are predicted whole.
        pictures: images on the sheet of overlays.
        gates: images whose gate is drawn; None leaves the gate alone.
        band: how the band of slag is measured, of models that know tube and slag.
        say: hears how far it is.

    Raises:
        UserError: the gate is asked for, and the model has none or an image is predicted in windows.
    """
    classes = loaded.manifest.classes
    evaluator = SemanticEvaluator(classes)
    shown = chosen(len(images), pictures)
    triples: list[Triple] = []
    model = prepare_for_inference(loaded.model).to(device)
    band = band or BandRule()
    study = gate_study(model, classes, gates, window) if gates is not None else None
    bands = BandStudy(classes, band) if band.knows_slag(classes) else None
    for index, (uri, image, target, found) in enumerate(_predicted(model, images, batch_size, window)):
        labels = labels_of(found)
        evaluator.update_labels(labels, target, uri, found.refined if isinstance(found, SemanticPrediction) else None)
        if study:
            study.add(image, labels, uri)
        if bands:
            bands.add(labels.numpy(), target.mask.numpy())
        if index in shown:
            triples.append(_triple(uri, image, target.mask, labels, classes))
        if (index + 1) % 50 == 0:
            say(f"{index + 1}/{len(images)} images")
    return MaskAssessment(
        classes=classes,
        metrics=evaluator.compute() | (bands.metrics() if bands else {}),
        images=len(images),
        confusion=evaluator.confusion(),
        pictures=triples,
        gates=study,
        bands=bands,
    )


def _predicted(
    model: SegmentationModel, images: SampleSet, batch_size: int, window: int
) -> Iterator[tuple[str, Tensor, SemanticTarget, ClassesFound]]:
    for start in range(0, len(images), batch_size):
        samples = [images[index] for index in range(start, min(start + batch_size, len(images)))]
        found = find_classes(model, [sample.image for sample in samples], window=window, batch=batch_size)
        for sample, one in zip(samples, found, strict=True):
            assert isinstance(sample.target, SemanticTarget)  # the data were checked against the package
            yield sample.uri, sample.image, sample.target, one


def _triple(uri: str, image: Tensor, mask: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Triple:
    known = mask != IGNORE_INDEX
    right = float((labels == mask)[known].float().mean()) if known.any() else float("nan")
    small, true = shrunk(image, mask.to(torch.uint8), DRAWN)
    found = shrunk(image, labels, DRAWN)[1]
    return Triple(
        captions=(uri, "labelled", f"found: {right:.1%} of the pixels right"),
        pictures=(small, draw_classes(small, true, classes), draw_classes(small, found, classes)),
        unknown=not bool(known.all()),
    )
