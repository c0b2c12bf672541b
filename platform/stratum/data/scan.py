"""Reads every image of a data set once: is it whole, what size has it, what do its labels come to."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from stratum import storage
from stratum.data import classmask, rle
from stratum.data.class_table import ClassTable
from stratum.data.idmask import read_ids
from stratum.data.images import DepthRule, ImageError, Pixels, decode_pixels, depth_rule
from stratum.data.records import Entry, Problem, RawAnnotation, Record, Rle, Severity
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX

WORKERS = 8  # decoders and S3 reads leave the interpreter's lock; more only compete


@dataclass(kw_only=True)
class _Finding:
    """What reading one entry gives; ``record`` stays None where the image cannot be used."""

    record: Record | None = None
    problems: list[Problem] = field(default_factory=list)

    def add(self, severity: Severity, kind: str, uri: str, detail: str) -> None:
        self.problems.append(Problem(severity=severity, kind=kind, uri=uri, detail=detail))

    def unreadable(self, uri: str, error: Exception) -> None:
        kind = "missing file" if isinstance(error, storage.MissingError | FileNotFoundError) else "unreadable file"
        self.add("error", kind, uri, _reason(error, uri))


def scan(entries: Sequence[Entry]) -> tuple[list[Record], list[Problem]]:
    """The usable images in the order of the entries, and every problem found."""
    with ThreadPoolExecutor(WORKERS) as pool:
        findings = list(pool.map(_examine, entries))
    return [f.record for f in findings if f.record is not None], [p for f in findings for p in f.problems]


def measure_depth(records: Iterable[Record]) -> DepthRule | None:
    """The 16-bit rule of a training set; None where all its images have 8 bits."""
    return depth_rule(_pixels(r) for r in records if r.deep)


def _pixels(record: Record) -> Pixels:
    path = record.path or storage.fetch(record.uri)
    return decode_pixels(path.read_bytes(), record.uri, rotate=record.rotate)


def _read(uri: str) -> tuple[Path, bytes]:
    path = storage.fetch(uri)
    return path, path.read_bytes()


def _examine(entry: Entry) -> _Finding:
    finding = _Finding()
    try:
        path, data = _read(entry.uri)
        pixels = decode_pixels(data, entry.uri)
    except ImageError as error:
        finding.add("error", "broken image", entry.uri, _reason(error, entry.uri))
        return finding
    except (UserError, OSError) as error:
        finding.unreadable(entry.uri, error)
        return finding
    if entry.table is not None and entry.mask_uri is not None:
        entry = _sized_by_mask(entry, entry.mask_uri, data, pixels)
    turned = _as_labelled(entry, data, pixels, finding)
    if turned is None:
        return finding
    pixels, rotate = turned
    size = (int(pixels.shape[0]), int(pixels.shape[1]))
    record = Record(
        uri=entry.uri,
        size=size,
        digest=hashlib.sha256(data).hexdigest(),
        picture=_picture_hash(pixels),
        deep=pixels.dtype == np.uint16,
        rotate=rotate,
        path=path,
    )
    finding.record = _with_instances(record, entry, finding) if entry.table is None else _with_classes(record, entry, entry.table, finding)
    return finding


def _with_instances(record: Record, entry: Entry, finding: _Finding) -> Record | None:
    size = record.size
    labelled = _masks(entry, size, finding) if entry.mask_uri is None else _id_masks(entry.mask_uri, size, finding)
    if labelled is None:
        return None
    labels, rles, crowd = labelled
    return replace(record, labels=labels, rles=rles, crowd=crowd)


def _with_classes(record: Record, entry: Entry, table: ClassTable, finding: _Finding) -> Record | None:
    if entry.mask_uri is None:
        raw, rles, _ = _masks(entry, record.size, finding)
        labels: classmask.Labels | None = classmask.paint(raw, rles, record.size, table)
    else:
        labels = _class_mask(entry.mask_uri, record.size, entry, table, finding)
    if labels is None:
        return None
    return replace(record, mask=classmask.pack(labels), pixel_counts=classmask.count(labels, len(table.names)))


def _class_mask(uri: str, size: tuple[int, int], entry: Entry, table: ClassTable, finding: _Finding) -> classmask.Labels | None:
    try:
        labels = classmask.read_class_mask(_read(uri)[1], uri, table, entry.colours)
    except classmask.ClassError as error:
        finding.add("error", "unknown class", uri, _reason(error, uri))
    except ImageError as error:
        finding.add("error", "broken mask", uri, _reason(error, uri))
    except (UserError, OSError) as error:
        finding.unreadable(uri, error)
    else:
        if labels.shape == size:
            if (labels == IGNORE_INDEX).any() and not ((labels > 0) & (labels != IGNORE_INDEX)).any():
                detail = "its only values are 0 and 255, which is ignored; if 255 is a class, name it in palette.json by its colour"
                finding.add("warning", "black and white", uri, detail)
            return labels
        sizes = f"the mask has {labels.shape[1]}x{labels.shape[0]} pixels, its image {entry.uri} {size[1]}x{size[0]}"
        finding.add("error", "wrong size", uri, sizes)
    return None


def _sized_by_mask(entry: Entry, mask_uri: str, data: bytes, pixels: Pixels) -> Entry:
    """The entry with the size of its mask where that is the image's as stored, without its EXIF orientation."""
    try:
        with Image.open(storage.fetch(mask_uri)) as mask:
            claimed = (mask.height, mask.width)
    except Exception:  # what is wrong with the mask is said where it is read
        return entry
    turned = claimed != pixels.shape[:2] and claimed == decode_pixels(data, entry.uri, rotate=False).shape[:2]
    return replace(entry, size=claimed) if turned else entry


def _as_labelled(entry: Entry, data: bytes, pixels: Pixels, finding: _Finding) -> tuple[Pixels, bool] | None:
    """The pixels the way up for which the labels were drawn, and whether that is the EXIF orientation's."""
    if entry.size is None or entry.size == pixels.shape[:2]:
        return pixels, True
    stored = decode_pixels(data, entry.uri, rotate=False)
    if entry.size == stored.shape[:2]:
        finding.add("warning", "not rotated", entry.uri, "its EXIF orientation is left out: the labels are for the pixels as stored")
        return stored, False
    sizes = f"the file has {pixels.shape[1]}x{pixels.shape[0]} pixels, the labels are for {entry.size[1]}x{entry.size[0]}"
    finding.add("error", "wrong size", entry.uri, sizes)
    return None


def _picture_hash(pixels: Pixels) -> str:
    picture = hashlib.sha256(repr((pixels.shape, str(pixels.dtype))).encode())
    picture.update(np.ascontiguousarray(pixels).data)
    return picture.hexdigest()


def _reason(error: Exception, uri: str) -> str:
    return " ".join(str(error).split()).removeprefix(f"{uri}: ")


Labelled = tuple[tuple[int, ...], tuple[Rle, ...], tuple[bool, ...]]


def _id_masks(uri: str, size: tuple[int, int], finding: _Finding) -> Labelled | None:
    try:
        found = read_ids(_read(uri)[1], uri, size)
    except ImageError as error:
        finding.add("error", "broken mask", uri, _reason(error, uri))
        return None
    except (UserError, OSError) as error:
        finding.unreadable(uri, error)
        return None
    if list(found) == [255]:
        finding.add("warning", "black and white", uri, "its only id is 255; all that is white counts as one instance")
    rles = tuple(found.values())
    return (0,) * len(rles), rles, (False,) * len(rles)


def _masks(entry: Entry, size: tuple[int, int], finding: _Finding) -> Labelled:
    kept: list[tuple[int, Rle, bool]] = []
    for annotation in entry.annotations:
        try:
            encoded, clipped = _encode(annotation, size)
        except rle.LabelError as error:
            finding.add("error", "broken label", entry.uri, f"{annotation.name}: {error}")
            continue
        if clipped:
            finding.add("warning", "clipped", entry.uri, f"{annotation.name} runs past the image's edge and was cut there")
        if rle.area(encoded) == 0:
            finding.add("warning", "zero area", entry.uri, f"{annotation.name} covers no pixel and was dropped")
        else:
            kept.append((annotation.label, encoded, annotation.crowd))
    return tuple(k[0] for k in kept), tuple(k[1] for k in kept), tuple(k[2] for k in kept)


def _encode(annotation: RawAnnotation, size: tuple[int, int]) -> tuple[Rle, bool]:
    segmentation = annotation.segmentation
    if segmentation in (None, [], [[]]):
        raise rle.LabelError("no segmentation, only a box: export polygons or masks")
    if isinstance(segmentation, dict):
        return rle.read_rle(segmentation, *size), False
    return rle.polygon_rle(rle.read_polygons(segmentation), *size)
