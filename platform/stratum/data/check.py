"""What a data set holds and what is wrong with it, as text, as JSON and as a contact sheet."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from stratum.data.classmask import unpack
from stratum.data.frequencies import pixel_totals
from stratum.data.images import DepthRule
from stratum.data.records import Problem, Record
from stratum.data.rle import area
from stratum.data.samples import read_record
from stratum.data.source import Survey
from stratum.report.class_overlays import class_legend, draw_classes
from stratum.report.overlays import contact_sheet, draw_instances
from stratum_models.interface import Task

BAR = 40  # characters of a histogram's longest bar
CELL = 320  # pixels of a picture's longer side on the contact sheet


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """The figures of one split. Histograms are pairs of a bin's name and its count."""

    images: int
    without_instances: int
    instances: int
    crowds: int
    deep_images: int  # with 16 bits per channel
    image_sizes: list[tuple[str, int]]  # "WxH", the most frequent first
    instances_per_image: tuple[int, float, int]  # least, median, most
    classes: list[tuple[str, int]]  # instances of each, or pixels where there are class masks
    diameters: list[tuple[str, int]]  # of the circle of equal area, in pixels, in steps of factor 2


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the check found."""

    uri: str
    task: Task
    train: PartSummary
    val: PartSummary
    depth: DepthRule | None
    dropped: dict[str, int]  # annotations by category that the class selection left out
    problems: list[Problem]

    @property
    def errors(self) -> int:
        """How many problems keep training from starting."""
        return sum(p.severity == "error" for p in self.problems)

    def to_json(self) -> dict[str, object]:
        """Plain values, with the counts of errors and warnings."""
        return {**asdict(self), "errors": self.errors, "warnings": len(self.problems) - self.errors}


def make_report(uri: str, survey: Survey) -> Report:
    """The figures of a survey. A split without any usable image is an error of its own."""
    parts = {"training": survey.train, "validation": survey.val}
    empty = [
        Problem(severity="error", kind="no images", uri=uri, detail=f"nothing usable for {name}")
        for name, records in parts.items()
        if not records
    ]
    return Report(
        uri=uri,
        task=survey.task,
        train=summarise(survey.train, survey.classes),
        val=summarise(survey.val, survey.classes),
        depth=survey.depth,
        dropped=dict(survey.dropped.most_common()),
        problems=survey.problems + empty,
    )


def summarise(records: Sequence[Record], classes: Sequence[str]) -> PartSummary:
    """Counts and histograms of some images."""
    labels = Counter(label for r in records for label in r.labels)
    pixels = pixel_totals([r for r in records if r.mask is not None], len(classes))
    counts = [len(r.labels) for r in records] or [0]
    sizes = Counter(f"{r.size[1]}x{r.size[0]}" for r in records)
    return PartSummary(
        images=len(records),
        without_instances=sum(not r.labels for r in records),
        instances=sum(counts),
        crowds=sum(sum(r.crowd) for r in records),
        deep_images=sum(r.deep for r in records),
        image_sizes=sizes.most_common(),
        instances_per_image=(min(counts), float(np.median(counts)), max(counts)),
        classes=[(name, labels[i] + pixels[i]) for i, name in enumerate(classes)],
        diameters=_diameters([area(rle) for r in records for rle in r.rles]),
    )


def _diameters(areas: Sequence[int]) -> list[tuple[str, int]]:
    octaves = Counter(max(math.floor(math.log2(math.sqrt(4.0 * a / math.pi))), 0) for a in areas)
    if not octaves:
        return []
    return [(f"{2**i}-{2 ** (i + 1)} px", octaves[i]) for i in range(min(octaves), max(octaves) + 1)]


def render(report: Report) -> str:
    """The report as text; the problems come last, errors first, each kind with its count."""
    lines = [f"data       {report.uri}"]
    for name, part in (("train", report.train), ("val", report.val)):
        lines += ["", *(_part_lines if report.task == "instance" else _mask_lines)(name, part)]
    if report.depth is not None:
        lines += ["", f"16-bit images are scaled so that {report.depth.low} becomes 0 and {report.depth.high} becomes 255"]
    if report.dropped:
        lines += ["", "left out by --classes: " + ", ".join(f"{name} {count}" for name, count in report.dropped.items())]
    return "\n".join([*lines, "", *_problem_lines(report)])


def _part_lines(name: str, part: PartSummary) -> list[str]:
    least, median, most = part.instances_per_image
    lines = [
        f"{name:<10} {part.images} images, {part.without_instances} of them without instances; "
        f"{part.instances} instances, {part.crowds} crowds",
        _size_line(part),
        f"  per image {least} to {most} instances, median {median:g}",
    ]
    for title, histogram in (("classes", part.classes), ("diameter of the circle of equal area", part.diameters)):
        lines += [f"  {title}", *_bars(histogram)]
    return lines


def _mask_lines(name: str, part: PartSummary) -> list[str]:
    total = max(sum(pixels for _, pixels in part.classes), 1)
    shares = [(f"{label} ({pixels / total:.2%})", pixels) for label, pixels in part.classes]
    return [f"{name:<10} {part.images} images with class masks", _size_line(part), "  pixels of each class", *_bars(shares)]


def _size_line(part: PartSummary) -> str:
    sizes = ", ".join(f"{size} ({count})" for size, count in part.image_sizes[:5])
    more = f" and {len(part.image_sizes) - 5} more sizes" if len(part.image_sizes) > 5 else ""
    return f"  sizes    {sizes or 'none'}{more}" + (f"; {part.deep_images} with 16 bits" if part.deep_images else "")


def _bars(histogram: Sequence[tuple[str, int]]) -> list[str]:
    if not histogram:
        return ["    none"]
    width, top = max(len(name) for name, _ in histogram), max(max(count for _, count in histogram), 1)
    digits = max(7, len(str(top)))
    return [f"    {name:<{width}} {count:>{digits}} {'#' * math.ceil(BAR * count / top)}" for name, count in histogram]


def _problem_lines(report: Report) -> list[str]:
    warnings = len(report.problems) - report.errors
    lines = [f"{report.errors} errors, {warnings} warnings"]
    kinds = Counter((p.severity, p.kind) for p in report.problems)
    for severity, kind in sorted(kinds):
        lines.append(f"{severity}: {kind} ({kinds[severity, kind]})")
        lines += [f"  {p.uri}: {p.detail}" for p in report.problems if (p.severity, p.kind) == (severity, kind)]
    return lines


def write_sheet(survey: Survey, path: Path, *, count: int = 24, columns: int = 6) -> Path | None:
    """Up to ``count`` pictures from both splits, evenly chosen, with their labels drawn over; None where there is no image."""
    named = [("train", r) for r in survey.train] + [("val", r) for r in survey.val]
    if not named:
        return None
    chosen = [named[round(i)] for i in np.linspace(0, len(named) - 1, min(count, len(named)))]
    pictures = [thumbnail(record, survey.depth, survey.classes) for _, record in chosen]
    captions = [f"{split}{f' {len(r.labels)}' if r.mask is None else ''}: {r.uri.rsplit('/', 1)[-1]}" for split, r in chosen]
    unknown = any(sum(r.pixel_counts) < r.size[0] * r.size[1] for _, r in chosen)
    legend = class_legend(survey.classes, unknown=unknown) if survey.task == "semantic" else ()
    return contact_sheet(pictures, path, columns=columns, captions=captions, cell=CELL, legend=legend)


def thumbnail(record: Record, depth: DepthRule | None, classes: Sequence[str] = ()) -> Tensor:
    """The image with its instances, or the classes of its mask, drawn over, ``uint8 [3, h, w]``, shrunk to :data:`CELL` where it is larger.

    Masks are shrunk one by one, since hundreds of them at full size may not fit into memory.
    """
    scale = min(CELL / max(record.size), 1.0)
    size = [max(round(side * scale), 1) for side in record.size]
    image = tv.resize(read_record(record, depth), size, antialias=True)
    if record.mask is not None:
        labels = tv.resize(torch.from_numpy(unpack(record.mask, record.size))[None], size, tv.InterpolationMode.NEAREST)[0]
        return draw_classes(image, labels, classes)
    masks = [tv.resize(torch.from_numpy(coco_mask.decode(rle))[None], size, tv.InterpolationMode.NEAREST) for rle in record.rles]
    return draw_instances(image, torch.cat(masks).bool() if masks else torch.zeros((0, *size), dtype=torch.bool))
