"""Class masks of many images: what is written for each of them, and for all.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate

from stratum import storage
from stratum.inference.classes import ClassesFound, find_classes, labels_of
from stratum.inference.outputs import grey_png, jpeg
from stratum.inference.work import BatchSpec, Found, Work
from stratum.report.class_overlays import class_legend, draw_classes
from stratum.report.class_plots import area_plot
from stratum.report.overlays import legend_picture
from stratum.slag import SlagBand, class_areas
from stratum_models.interface import SegmentationModel, SemanticPrediction
from stratum_models.package import Manifest

LARGEST_OVERLAY = 4096  # pixels of the longer side; a JPEG ends at 65,535, and a viewer long before


class MaskWriter:
    """Predicts images in an actor, and writes of each a mask of class indices (an 8-bit PNG) and an overlay."""

    def __init__(self, spec: BatchSpec, manifest: Manifest) -> None:
        self._spec, self._classes = spec, manifest.classes

    def find(self, model: SegmentationModel, works: Sequence[Work], images: Sequence[Tensor]) -> list[Found]:
        """What is in each image ``uint8 [3, H, W]``."""
        answers = find_classes(model, images, window=self._spec.window, batch=self._spec.batch_size)
        return [self._keep(*one) for one in zip(works, images, answers, strict=True)]

    def _keep(self, work: Work, image: Tensor, answer: ClassesFound) -> Found:
        """Write the files of one image and return the rest."""
        labels = labels_of(answer)
        storage.write_bytes(storage.join(self._spec.storage, "masks", f"{work.name}.png"), grey_png(labels.numpy()))
        if self._spec.overlays:
            drawn = draw_classes(*shrunk(image, labels, LARGEST_OVERLAY), self._classes)
            storage.write_bytes(storage.join(self._spec.storage, "overlays", f"{work.name}.jpg"), jpeg(drawn))
        found = answer if isinstance(answer, SemanticPrediction) else answer.numpy()
        band, note = self._spec.band(found, self._classes)  # of an image in windows in whole pixels, for want of probabilities
        areas = class_areas(labels.numpy(), self._classes, mm_per_px=band.mm_per_px if band else self._spec.mm_per_px)
        return Found(work=work, height=labels.shape[0], width=labels.shape[1], areas=tuple(areas), band=band, note=note)


def shrunk(image: Tensor, labels: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The image ``uint8 [3, H, W]`` and its labels ``uint8 [H, W]`` with the longer side at most so many pixels."""
    scale = longest / max(labels.shape)
    if scale >= 1:
        return image, labels
    size = [max(1, round(side * scale)) for side in labels.shape]
    small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().clamp(0, 255)
    return small.to(image.dtype), interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].to(labels.dtype)


class MaskResults:
    """All images together: measurements.csv (areas), slag.csv for models that know tube and slag, areas.json, areas.png, legend.png."""

    def __init__(self, found: Sequence[Found], manifest: Manifest, spec: BatchSpec) -> None:
        self._classes, self._good = manifest.classes, [one for one in found if not one.error]
        self._banded = spec.knows_slag(manifest.classes)
        self.artifacts = ("areas.json", "areas.png", *(("slag.csv",) if self._banded else ()))
        self.record: dict[str, Any] = {
            "images": len(self._good),
            "broken": len(found) - len(self._good),
            "mm_per_px": spec.mm_per_px,
            "tube_diameter_mm": spec.tube_diameter_mm,
            "window": spec.window,
            "weights_sha256": manifest.weights_sha256,
            "classes": self._totals(),
            "slag": self._slag() if self._banded else None,
            "scans": {one.work.uri: {"refined": one.refined, "patches": one.patches} for one in self._good if one.patches is not None},
            "broken_images": {one.work.uri: one.error for one in found if one.error},
        }

    def metrics(self) -> dict[str, float]:
        """What MLflow shows of the run."""
        counts = {f"predict/{key}": float(self.record[key]) for key in ("images", "broken")}
        slag = self.record["slag"] or {}
        return counts | {f"predict/slag_{key}": value for key, value in slag.items() if key.startswith("height") and value is not None}

    def write(self, folder: Path) -> None:
        """The files, into a folder on this machine."""
        rows = [{"image": one.work.uri, **area.record()} for one in self._good for area in one.areas]
        (folder / "measurements.csv").write_text(_csv(rows, ("image", "label", "area_px", "fraction", "area_mm2")))
        if self._banded:
            names = ("image", *SlagBand.__dataclass_fields__, "note")
            bands = [{"image": one.work.uri, **(one.band.record() if one.band else {}), "note": one.note} for one in self._good]
            (folder / "slag.csv").write_text(_csv(bands, names))
        (folder / "areas.json").write_text(json.dumps(self.record, indent=2) + "\n")
        fractions = np.array([[area.fraction for area in one.areas] for one in self._good]).reshape(-1, len(self._classes))
        area_plot(fractions, self._classes, folder / "areas.png")
        legend_picture(class_legend(self._classes), 480).save(folder / "legend.png")

    def table(self) -> Table:
        """What the job prints."""
        record = self.record
        table = Table(title=f"{record['images']} images, {record['broken']} images broken")
        table.add_column("class")
        table.add_column("share of all pixels", justify="right")
        for one in record["classes"]:
            table.add_row(one["label"], f"{one['fraction']:.2%}")
        slag = record["slag"]
        if slag is not None:
            unit = "px" if slag["height_mm"] is None else "mm"
            height, spread = slag[f"height_{unit}"], slag[f"uncertainty_{unit}"]
            text = f"{height:.2f} ± {spread:.2f} {unit}" if height is not None else "-"
            table.add_row(f"height of the slag band, median of {slag['measured']} images", text)
        return table

    def _totals(self) -> list[dict[str, Any]]:
        """Each class over all images."""
        pixels = [sum(one.areas[label].area_px for one in self._good) for label in range(len(self._classes))]
        everything = max(sum(pixels), 1)
        return [
            {"label": name, "area_px": count, "fraction": count / everything} for name, count in zip(self._classes, pixels, strict=True)
        ]

    def _slag(self) -> dict[str, Any]:
        """The medians over the images in which a band was measured."""
        bands = [one.band for one in self._good if one.band]
        names = ("height_px", "uncertainty_px", "height_mm", "uncertainty_mm")
        known = {name: [value for band in bands if (value := getattr(band, name)) is not None] for name in names}
        medians = {name: median(values) if values else None for name, values in known.items()}
        return {"measured": len(bands), "not_measured": len(self._good) - len(bands), **medians}


def _csv(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
