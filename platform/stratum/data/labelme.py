"""Labelme's JSON files: polygons, rectangles, circles and masks that are painted to class masks."""

import base64
import io
import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stratum import storage
from stratum.data import rle
from stratum.data.class_table import BACKGROUND, ClassTable
from stratum.data.images import IMAGE_SUFFIXES
from stratum.data.parts import LabelmePart
from stratum.data.records import Entry, Problem, RawAnnotation, Rle
from stratum.storage.parallel import in_parallel
from stratum_models.errors import UserError

Shape = Mapping[str, object]
_BACKGROUNDS = ("_background_", BACKGROUND)  # Labelme's own name for it, and ours
_CORNERS = 96  # of the polygon that stands for a circle


@dataclass(frozen=True, kw_only=True)
class LabelmeFile:
    """One file as it was read; ``error`` says why there is nothing in it."""

    name: str  # relative to the tree
    image: str = ""
    size: tuple[int, int] | None = None
    shapes: tuple[Shape, ...] = ()
    error: str = ""


def read_part(part: LabelmePart) -> list[LabelmeFile]:
    """Every file of a part, in order; files are read side by side."""
    return in_parallel(lambda name: _read(part, name), part.files)


def _read(part: LabelmePart, name: str) -> LabelmeFile:
    try:
        content = storage.read_json(part.tree.uri(name))
    except UserError as error:
        return LabelmeFile(name=name, error=" ".join(str(error).split()))
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(s, dict) and isinstance(s.get("label"), str) for s in shapes):
        return LabelmeFile(name=name, error="no Labelme file: it has no list of shapes with labels")
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return LabelmeFile(name=name, image=str(content.get("imagePath") or ""), size=size, shapes=tuple(shapes))


def label_names(files: Sequence[LabelmeFile]) -> list[str]:
    """The background, then the labels of all shapes in alphabetical order."""
    return [BACKGROUND, *sorted({_label(shape) for file in files for shape in file.shapes} - {BACKGROUND})]


def _label(shape: Shape) -> str:
    label = str(shape["label"])
    return BACKGROUND if label in _BACKGROUNDS else label


def labelme_entries(part: LabelmePart, files: Sequence[LabelmeFile], table: ClassTable) -> tuple[list[Entry], list[Problem]]:
    """Every image with its shapes, and what is wrong; an image without a file of its own is a warning."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for file in files:
        uri = part.tree.uri(file.name)
        image = None if file.error else _image(part, file)
        if file.error:
            problems.append(Problem(severity="error", kind="unreadable file", uri=uri, detail=file.error.removeprefix(f"{uri}: ")))
        elif image is None:
            detail = f"its image {file.image or 'of the same name'} is not there"
            problems.append(Problem(severity="error", kind="missing file", uri=uri, detail=detail))
        else:
            annotations, found = _annotations(file, uri, table)
            entries.append(Entry(uri=part.tree.uri(image), annotations=tuple(annotations), size=file.size, table=table))
            problems += found
    if part.unlabelled:
        names = f"{', '.join(part.unlabelled[:3])}{' ...' if len(part.unlabelled) > 3 else ''}"
        detail = f"{len(part.unlabelled)} without a JSON file, so not used: {names}"
        problems.append(Problem(severity="warning", kind="unlisted image", uri=part.tree.root, detail=detail))
    return entries, problems


def _image(part: LabelmePart, file: LabelmeFile) -> str | None:
    folder, stem = posixpath.dirname(file.name), file.name.rsplit(".", 1)[0]
    named = file.image.replace("\\", "/")
    candidates = [posixpath.normpath(posixpath.join(folder, named)), posixpath.join(folder, posixpath.basename(named))] if named else []
    candidates += [stem + suffix for suffix in IMAGE_SUFFIXES]
    return next((name for name in candidates if not name.startswith("/") and part.tree.has(name)), None)


def _annotations(file: LabelmeFile, uri: str, table: ClassTable) -> tuple[list[RawAnnotation], list[Problem]]:
    annotations: list[RawAnnotation] = []
    problems: list[Problem] = []
    for number, shape in enumerate(file.shapes):
        name = f"shape {number} ({shape['label']})"
        if (label := _label(shape)) not in table.known:
            known = ", ".join(n for n in table.known if n is not None)
            detail = f"{name} is of a class that is not in the list ({known})"
            problems.append(Problem(severity="error", kind="unknown category", uri=uri, detail=detail))
            continue
        try:
            area = _mask(shape, file.size) if shape.get("shape_type") == "mask" else _outline(shape)
        except (TypeError, ValueError) as error:
            problems.append(Problem(severity="error", kind="broken label", uri=uri, detail=f"{name}: {error}"))
            continue
        if area is None:
            detail = f"{name} is a {shape.get('shape_type')}, which covers no area, or none that is read here; it was left out"
            problems.append(Problem(severity="warning", kind="shape left out", uri=uri, detail=detail))
        else:
            annotations.append(RawAnnotation(name=name, label=table.known.index(label), segmentation=area, crowd=False))
    return annotations, problems


def _points(shape: Shape) -> list[tuple[float, float]]:
    given = shape.get("points")
    if not isinstance(given, list):
        raise ValueError("it has no points")
    points = [(float(x), float(y)) for x, y in given]
    if not all(math.isfinite(v) for point in points for v in point):
        raise ValueError("a point is no finite number")
    return points


def _corners(shape: Shape) -> tuple[float, float, float, float]:
    points = _points(shape)
    if len(points) != 2:
        raise ValueError(f"a {shape.get('shape_type')} has two points, this one {len(points)}")
    return *points[0], *points[1]


def _mask(shape: Shape, size: tuple[int, int] | None) -> Rle:
    """The pixels of a mask, a PNG of the box whose first and last pixel the points name, on the whole image."""
    if size is None:
        raise ValueError("a mask needs imageHeight and imageWidth")
    x0, y0, x1, y1 = (round(v) for v in _corners(shape))
    whole = np.zeros(size, dtype=np.bool_)
    if not (0 <= x0 <= x1 < size[1] and 0 <= y0 <= y1 < size[0]):
        raise ValueError(f"its mask from {x0}, {y0} to {x1}, {y1} does not lie in the image of {size[1]}x{size[0]} pixels")
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(shape.get("mask")), validate=True))) as image:
            if image.size != (x1 - x0 + 1, y1 - y0 + 1):
                raise ValueError(f"its mask has {image.width}x{image.height} pixels, its box {x1 - x0 + 1}x{y1 - y0 + 1}")
            pixels = np.asarray(image.convert("L")) > 0
    except OSError as error:
        raise ValueError("its mask is no whole PNG") from error
    whole[y0 : y1 + 1, x0 : x1 + 1] = pixels
    return rle.encode(whole[None])[0]


def _outline(shape: Shape) -> list[list[float]] | None:
    """The polygon of a shape as COCO writes one; None for a kind that has no area."""
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        return [[v for point in _points(shape) for v in point]]
    if kind not in ("rectangle", "circle"):
        return None
    x0, y0, x1, y1 = _corners(shape)
    if kind == "rectangle":
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    radius = math.hypot(x1 - x0, y1 - y0) * math.sqrt(2 * math.pi / _CORNERS / math.sin(2 * math.pi / _CORNERS))  # of equal area
    angles = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
    return [[v for angle in angles for v in (x0 + radius * math.cos(angle), y0 + radius * math.sin(angle))]]
