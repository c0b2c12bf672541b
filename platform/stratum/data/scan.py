"""Reads every image of a data set once: is it whole, what size has it, what do its labels come to."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stratum import storage
from stratum.data import rle
from stratum.data.idmask import read_ids
from stratum.data.images import DepthRule, ImageError, Pixels, decode_pixels, depth_rule
from stratum.data.records import Entry, Problem, RawAnnotation, Record, Rle, Severity
from stratum_models.errors import UserError

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
    turned = _as_labelled(entry, data, pixels, finding)
    if turned is None:
        return finding
    pixels, rotate = turned
    size = (int(pixels.shape[0]), int(pixels.shape[1]))
    labelled = _masks(entry, size, finding) if entry.mask_uri is None else _id_masks(entry.mask_uri, size, finding)
    if labelled is None:
        return finding
    labels, rles, crowd = labelled
    finding.record = Record(
        uri=entry.uri,
        size=size,
        labels=labels,
        rles=rles,
        crowd=crowd,
        digest=hashlib.sha256(data).hexdigest(),
        picture=_picture_hash(pixels),
        deep=pixels.dtype == np.uint16,
        rotate=rotate,
        path=path,
    )
    return finding


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
    if segmentation is None:
        raise rle.LabelError("no segmentation")
    if isinstance(segmentation, dict):
        return rle.read_rle(segmentation, *size), False
    return rle.polygon_rle(rle.read_polygons(segmentation), *size)
