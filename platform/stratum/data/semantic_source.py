"""What a data set of class masks lists: its classes, its images, and what is wrong before any image is read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stratum import storage
from stratum.data.class_table import BACKGROUND, class_table
from stratum.data.classes import ClassMap
from stratum.data.classmask import stored_values
from stratum.data.coco import CocoFile, coco_entries, read_coco, unlisted_images, used_categories
from stratum.data.images import ImageError
from stratum.data.labelme import LabelmeFile, label_names, labelme_entries, read_part
from stratum.data.palette import NAMING_FILES, Naming, read_naming
from stratum.data.parts import CocoPart, LabelmePart, MaskPart, Part, Tree
from stratum.data.records import Entry, Problem
from stratum.data.voc import CLASSES as VOC_CLASSES
from stratum.storage.parallel import in_parallel
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, Task


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of each part, unread."""

    entries: list[list[Entry]]
    classes: tuple[str, ...]
    problems: list[Problem]
    dropped: Counter[str] = field(default_factory=Counter)  # annotations by category that the class selection left out


def task_of(parts: Sequence[Part], forced: str) -> Task:
    """The task that a data set is for, where none is forced: class masks say what they mean, and everything else holds instances.

    Masks hold classes where ``classes.json``, ``palette.json`` or ``labelmap.txt`` lies at their top, unless their folder is called
    ``instances``. Raises ``UserError`` where the files cannot be read as the forced task.
    """
    if forced == "instance" and any(isinstance(part, LabelmePart) or (isinstance(part, MaskPart) and part.kind == "voc") for part in parts):
        raise UserError(f"{parts[0].tree.root} holds class masks, which cannot be read as instances; leave the task out")
    if forced:
        return "semantic" if forced == "semantic" else "instance"
    first = parts[0]
    if isinstance(first, MaskPart) and first.kind == "folder":
        return "semantic" if naming_file(first.tree) else "instance"
    return "semantic" if isinstance(first, LabelmePart) or (isinstance(first, MaskPart) and first.kind == "voc") else "instance"


def naming_file(tree: Tree) -> str | None:
    """The file that names the classes of a tree's masks: at its top, or, on this machine, one folder up for a split that was
    named alone."""
    places = ("",) if storage.is_remote(tree.root) else ("", "../")
    return next((tree.uri(place + name) for place in places for name in NAMING_FILES if tree.has(place + name)), None)


def list_semantic(parts: Sequence[Part], wanted: ClassMap) -> Listing:
    """The images of a data set as entries with class masks. Raises ``UserError`` where its classes cannot be made out."""
    if all(isinstance(part, MaskPart) for part in parts):
        return _list_masks([part for part in parts if isinstance(part, MaskPart)], wanted)
    if all(isinstance(part, LabelmePart) for part in parts):
        return _list_labelme([part for part in parts if isinstance(part, LabelmePart)], wanted)
    return _list_coco([part for part in parts if isinstance(part, CocoPart)], wanted)


def _list_masks(parts: Sequence[MaskPart], wanted: ClassMap) -> Listing:
    naming = _naming(parts)
    table = class_table(naming.known, wanted)
    entries: list[list[Entry]] = []
    problems: list[Problem] = []
    for part in parts:
        uri = part.tree.uri
        own = [Entry(uri=uri(image), mask_uri=uri(mask), table=table) for image, mask in part.pairs if mask is not None]
        entries.append([replace(entry, colours=naming) for entry in own] if naming.colours else own)
        lonely = [(image, "an image without a class mask of the same name") for image, mask in part.pairs if mask is None]
        lonely += [(mask, "a class mask without an image of the same name") for mask in part.orphans]
        problems += [Problem(severity="error", kind="missing file", uri=uri(name), detail=detail) for name, detail in lonely]
    return Listing(entries=entries, classes=table.names, problems=problems)


def _naming(parts: Sequence[MaskPart]) -> Naming:
    found = naming_file(parts[0].tree)
    if found is not None:
        return read_naming(found)
    if parts[0].kind == "voc":
        return Naming(uri=parts[0].tree.root, known=VOC_CLASSES)
    return Naming(uri=parts[0].tree.root, known=_names_by_value(parts))


def _names_by_value(parts: Sequence[MaskPart]) -> tuple[str | None, ...]:
    """Names for the values of masks that nothing names: ``class_0`` to the highest, those that no mask has left out."""
    uris = [part.tree.uri(mask) for part in parts for _, mask in part.pairs if mask is not None]
    present = np.any(in_parallel(_values, uris), axis=0)
    present[IGNORE_INDEX] = False
    if not present.any():
        raise UserError(f"the masks under {parts[0].tree.root} hold no class index below 255; name the classes in classes.json")
    return tuple(f"class_{i}" if there else None for i, there in enumerate(present[: int(present.nonzero()[0].max()) + 1]))


def _values(uri: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which values up to 255 a mask has; what is unreadable is said when it is read."""
    found = np.zeros(IGNORE_INDEX + 1, dtype=np.bool_)
    try:
        values = np.asarray(stored_values(storage.fetch(uri).read_bytes(), uri))
        found[values[values <= IGNORE_INDEX]] = True
    except (ImageError, UserError, OSError):
        pass
    return found


def _list_labelme(parts: Sequence[LabelmePart], wanted: ClassMap) -> Listing:
    files: list[list[LabelmeFile]] = [read_part(part) for part in parts]
    named = naming_file(parts[0].tree)
    table = class_table(_with_background(read_naming(named).known if named else label_names([f for own in files for f in own])), wanted)
    listed = [labelme_entries(part, own, table) for part, own in zip(parts, files, strict=True)]
    problems = [problem for _, found in listed for problem in found]
    return Listing(entries=[entries for entries, _ in listed], classes=table.names, problems=problems)


def _list_coco(parts: Sequence[CocoPart], wanted: ClassMap) -> Listing:
    files: list[CocoFile] = [read_coco(part.tree.uri(part.file)) for part in parts]
    table = class_table(_with_background(used_categories(files)), wanted)
    every = ClassMap(groups=tuple((name, (name,)) for name in table.known if name is not None))
    entries: list[list[Entry]] = []
    problems: list[Problem] = []
    for file, part in zip(files, parts, strict=True):
        own, found, _ = coco_entries(file, part, every)
        entries.append([replace(entry, table=table) for entry in own])
        problems += found
    named = [entry.uri for own in entries for entry in own] + [p.uri for p in problems if p.kind == "listed twice"]
    return Listing(entries=entries, classes=table.names, problems=problems + unlisted_images(parts, named))


def _with_background(known: Sequence[str | None]) -> tuple[str | None, ...]:
    """The names with the background first, as what no shape covers has raw index 0."""
    return (BACKGROUND, *(name for name in known if name not in (BACKGROUND, None)))


def class_problems(table_classes: Sequence[str], counts: Sequence[Sequence[int]], uri: str) -> list[Problem]:
    """A warning for each class without a pixel in the training part; an error where at most one class has any."""
    totals = [sum(column) for column in zip(*counts, strict=True)] if counts else [0] * len(table_classes)
    problems = [
        Problem(severity="warning", kind="empty class", uri=uri, detail=f"no pixel of {name!r} in the training part")
        for name, total in zip(table_classes, totals, strict=True)
        if total == 0
    ]
    if counts and sum(total > 0 for total in totals) < 2:
        detail = "the training part holds fewer than two classes, so there is nothing to tell apart; check the masks and --classes"
        problems.append(Problem(severity="error", kind="one class", uri=uri, detail=detail))
    return problems
