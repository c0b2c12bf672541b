"""What was found, as the bytes of an answer.

Shapes: ``N`` instances, ``H`` and ``W`` the size of the image.
"""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratum.inference.outputs import annotations_of, grey_png, id_mask, jpeg
from stratum.report.class_overlays import draw_classes
from stratum.report.overlays import draw_instances
from stratum_models.interface import InstancePrediction
from stratum_serve.options import Format
from stratum_serve.results import Found

MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "png": "image/png",
    "overlay": "image/jpeg",
    "npz": "application/x-npz",
}
SUFFIXES: Mapping[Format, str] = {"json": ".json", "png": ".png", "overlay": ".jpg", "npz": ".npz"}
TOLERANCE = 0.5  # pixels by which a polygon may leave the outline


def encode(found: Found, format: Format, geometry: str, about: Mapping[str, Any]) -> bytes:
    """The answer in one of the formats; ``about`` is what its JSON says beside what was found."""
    if format == "json":
        return to_json({**about, **document(found, geometry)})
    if format == "png":
        return grey_png(id_mask(found.instances) if found.instances is not None else found.labels())
    return overlay(found) if format == "overlay" else npz(found)


def to_json(values: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def document(found: Found, geometry: str = "rle") -> dict[str, Any]:
    """What was found, as plain values."""
    height, width = found.size
    values: dict[str, Any] = {"task": found.manifest.task, "height": height, "width": width, "classes": _shares(found)}
    if found.instances is not None:
        values["instances"] = _instances(found, found.instances, geometry)
    else:
        values["mask"] = {"encoding": "png", "data": base64.b64encode(grey_png(found.labels())).decode()}
    if found.grid is not None:
        values["refined"] = {"rows": found.grid[0], "columns": found.grid[1], "patch": found.patch, "patches": list(found.refined)}
    return values


def summary(found: Found) -> dict[str, float]:
    """A few numbers that tell two answers apart: the instances, and the share of each class."""
    shares = {f"class/{one['label']}": one["fraction"] for one in _shares(found)}
    return shares if found.instances is None else {"instances": float(len(found.instances)), **shares}


def overlay(found: Found) -> bytes:
    """The image with what was found drawn over it, as JPEG."""
    if found.instances is not None:
        return jpeg(draw_instances(found.image, found.instances.masks))
    labels = torch.from_numpy(found.labels())
    drawn = draw_classes(found.image, labels, found.manifest.classes)
    return jpeg(torch.where(labels == 255, found.image, drawn) if found.wanted else drawn)


def npz(found: Found) -> bytes:
    """Arrays without pickles.

    Instances: ``boxes`` float32 ``[N, 4]``, ``scores`` ``[N]``, ``labels`` ``[N]``, ``ids`` uint16 ``[H, W]``, and ``masks`` bool
    ``[N, H, W]``. Classes: ``labels`` uint8 ``[H, W]``. Both: ``classes``, the names.
    """
    buffer = io.BytesIO()
    names = np.array(found.manifest.classes)
    if found.instances is None:
        np.savez_compressed(buffer, labels=found.labels(), classes=names)
        return buffer.getvalue()
    one = found.instances
    np.savez_compressed(
        buffer,
        boxes=one.boxes.numpy(),
        scores=one.scores.numpy(),
        labels=one.labels.numpy(),
        masks=one.masks.numpy(),
        ids=id_mask(one),
        classes=names,
    )
    return buffer.getvalue()


def _instances(found: Found, instances: InstancePrediction, geometry: str) -> list[dict[str, Any]]:
    listed = []
    for index, annotation in enumerate(annotations_of(instances)):
        x, y, width, height = annotation["bbox"]
        shape = annotation["segmentation"] if geometry == "rle" else polygons(instances.masks[index].numpy())
        listed.append(
            {
                "id": index + 1,
                "label": found.manifest.classes[annotation["category_id"] - 1],
                "score": annotation["score"],
                "box": [x, y, round(x + width, 2), round(y + height, 2)],
                "area": annotation["area"],
                "segmentation": shape,
            }
        )
    return listed


def polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """The outlines of a mask ``[H, W]``, outer ones and those of holes: rings of x0, y0, x1, y1, ... in pixels."""
    from skimage.measure import approximate_polygon, find_contours  # a second of loading that a replica without polygons is spared

    rings = []
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    part = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float32)
    for ring in find_contours(part, 0.5):  # type: ignore[no-untyped-call]
        simple = approximate_polygon(ring, TOLERANCE)  # type: ignore[no-untyped-call]
        points = simple[:, ::-1] + (left - 0.5, top - 0.5)  # pixel i spans i to i + 1
        if len(points) >= 4:
            rings.append([round(float(value), 1) for value in points[:-1].ravel()])
    return rings


def _shares(found: Found) -> list[dict[str, Any]]:
    """What each class covers, and of how many instances it is."""
    height, width = found.size
    shares: list[dict[str, Any]] = []
    for index, name in found.answered():
        pixels = found.pixels[index]
        shares.append({"label": name, "pixels": pixels, "fraction": pixels / (height * width)})
        if found.instances is not None:
            shares[-1]["instances"] = int((found.instances.labels == index).sum())
    return shares
