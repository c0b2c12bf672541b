"""Measurements of one image: sizes of particles, or areas of classes and the height of the slag's band."""

from dataclasses import asdict
from typing import Any

from stratum.measurements import fit_rosin_rammler, histogram, measure_instances, size_distribution
from stratum.slag import class_areas
from stratum_models.interface import InstancePrediction, SemanticPrediction
from stratum_serve.options import CommonOptions, band_rule
from stratum_serve.results import Found


def measurements(found: Found, options: CommonOptions) -> dict[str, Any]:
    """All measurements, as plain values."""
    height, width = found.size
    values = {"task": found.manifest.task, "height": height, "width": width, "mm_per_px": options.mm_per_px}
    if found.instances is not None:
        return values | _particles(found, found.instances, options.mm_per_px)
    return values | _classes(found, options)


def _particles(found: Found, instances: InstancePrediction, mm_per_px: float | None) -> dict[str, Any]:
    particles = measure_instances(instances, classes=found.manifest.classes, mm_per_px=mm_per_px)
    sizes = size_distribution(particles)
    law = fit_rosin_rammler(sizes)
    records = [particle.record() for particle in particles]
    for record in records:
        del record["image"]
    return {
        "particles": records,
        "sizes": sizes.summary(),
        "rosin_rammler": asdict(law) if law else None,
        "histogram": asdict(histogram(sizes)) if len(sizes) else None,
    }


def _classes(found: Found, options: CommonOptions) -> dict[str, Any]:
    band, note = band_rule(options).band(_plain(found), found.manifest.classes)
    scale = band.mm_per_px if band else options.mm_per_px
    assert found.semantic is not None
    every = class_areas(_plain(found), found.manifest.classes, mm_per_px=scale)
    names = {name for _, name in found.answered()}
    return {
        "areas": [area.record() for area in every if area.label in names],
        "slag": band.record() if band else None,
        "note": note,
    }


def _plain(found: Found) -> Any:
    """Probabilities, or the class map of an image in windows, as the measurements take them."""
    return found.semantic if isinstance(found.semantic, SemanticPrediction) else found.semantic.numpy()  # type: ignore[union-attr]
