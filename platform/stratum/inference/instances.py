"""Instances of many images: what is written for each of them, and for all."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from stratum import storage
from stratum.inference.outputs import annotations_of, coco_document, grey_png, id_mask, instances_of, jpeg, to_float, visible
from stratum.inference.work import BatchSpec, Found, Work
from stratum.measurements import fit_rosin_rammler, histogram, measure_instances, particles_csv, size_distribution
from stratum.report.overlays import draw_instances
from stratum.report.plots import size_plot
from stratum_models.interface import InstancePrediction, SegmentationModel
from stratum_models.package import Manifest, above_threshold


class InstanceWriter:
    """Predicts images in an actor, and writes of each a mask of ids and an overlay."""

    def __init__(self, spec: BatchSpec, manifest: Manifest) -> None:
        self._spec, self._classes = spec, manifest.classes

    def find(self, model: SegmentationModel, works: Sequence[Work], images: Sequence[Tensor]) -> list[Found]:
        """What is in each image ``uint8 [3, H, W]``."""
        with torch.inference_mode():
            predictions = model.predict([to_float(image).to(model.device) for image in images])
        shown = [visible(instances_of(above_threshold(one.to("cpu"), self._spec.score_threshold))) for one in predictions]
        return [self._keep(*one) for one in zip(works, images, shown, strict=True)]

    def _keep(self, work: Work, image: Tensor, prediction: InstancePrediction) -> Found:
        """Write the files of one image and return the rest."""
        storage.write_bytes(storage.join(self._spec.storage, "masks", f"{work.name}.png"), grey_png(id_mask(prediction)))
        if self._spec.overlays:
            drawn = draw_instances(image, prediction.masks)
            storage.write_bytes(storage.join(self._spec.storage, "overlays", f"{work.name}.jpg"), jpeg(drawn))
        return Found(
            work=work,
            height=int(image.shape[1]),
            width=int(image.shape[2]),
            annotations=tuple(annotations_of(prediction)),
            particles=tuple(measure_instances(prediction, image=work.uri, classes=self._classes, mm_per_px=self._spec.mm_per_px)),
        )


class InstanceResults:
    """All images together: predictions.json (COCO), measurements.csv, sizes.json, sizes.png."""

    artifacts = ("sizes.json", "sizes.png")

    def __init__(self, found: Sequence[Found], manifest: Manifest, spec: BatchSpec) -> None:
        self._found, self._classes = found, manifest.classes
        self._particles = [particle for one in found for particle in one.particles]
        sizes = size_distribution(self._particles)
        law = fit_rosin_rammler(sizes)
        broken = [one for one in found if one.error]
        self.record: dict[str, Any] = {
            "images": len(found) - len(broken),
            "broken": len(broken),
            "instances": sum(len(one.annotations) for one in found),
            "score_threshold": spec.score_threshold,
            "mm_per_px": spec.mm_per_px,
            "weights_sha256": manifest.weights_sha256,
            "sizes": sizes.summary(),
            "rosin_rammler": asdict(law) if law else None,
            "histogram": asdict(histogram(sizes)) if len(sizes) else None,
            "broken_images": {one.work.uri: one.error for one in broken},
        }

    def metrics(self) -> dict[str, float]:
        """What MLflow shows of the run."""
        return {f"predict/{key}": float(self.record[key]) for key in ("images", "broken", "instances")}

    def write(self, folder: Path) -> None:
        """The files, into a folder on this machine."""
        images = [
            {"file_name": one.work.uri, "height": one.height, "width": one.width, "annotations": one.annotations}
            for one in self._found
            if not one.error
        ]
        (folder / "predictions.json").write_text(json.dumps(coco_document(images, self._classes)) + "\n")
        (folder / "measurements.csv").write_text(particles_csv(self._particles))
        (folder / "sizes.json").write_text(json.dumps(self.record, indent=2) + "\n")
        size_plot(size_distribution(self._particles), None, folder / "sizes.png")

    def table(self) -> Table:
        """What the job prints."""
        record = self.record
        table = Table(title=f"{record['instances']} instances in {record['images']} images, {record['broken']} images broken")
        table.add_column("size by volume")
        table.add_column(record["sizes"]["unit"], justify="right")
        for level in ("d10", "d50", "d80", "d90"):
            value = record["sizes"][level]
            table.add_row(level.upper(), f"{value:.2f}" if value is not None else "-")
        law = record["rosin_rammler"]
        if law is not None:
            table.add_row(f"Rosin-Rammler x63.2 (n {law['n']:.2f}, R² {law['r_squared']:.3f})", f"{law['x632']:.2f}")
        return table
