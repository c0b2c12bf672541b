"""COCO instance files: what they list, checked as far as that goes without reading an image."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stratum import storage
from stratum.data.classes import ClassMap
from stratum.data.images import IMAGE_SUFFIXES
from stratum.data.parts import CocoPart
from stratum.data.records import Entry, Problem, RawAnnotation
from stratum_models.errors import UserError

Item = dict[str, object]
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """The three lists of a COCO JSON."""

    uri: str
    images: list[Item]
    annotations: list[Item]
    categories: dict[object, str]  # by id, in the order of the ids


def read_coco(uri: str) -> CocoFile:
    """Read a COCO JSON. Raises ``UserError`` where it is no JSON, or a JSON that is no COCO instance file."""
    content = storage.read_json(uri)
    if not isinstance(content, dict):
        raise UserError(
            f"{uri} is no COCO file: it holds a {type(content).__name__}, not an object with images, annotations and categories"
        )
    lists = [content.get(key) for key in ("images", "annotations", "categories")]
    images, annotations, categories = lists
    if not (
        _is_items(images, "id", "file_name") and _is_items(annotations, "image_id", "category_id") and _is_items(categories, "id", "name")
    ):
        found = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        raise UserError(
            f"{uri} is no COCO instance file: it needs images (id, file_name), annotations (image_id, category_id) "
            f"and categories (id, name); found {found}"
        )
    return CocoFile(uri=uri, images=images, annotations=annotations, categories=_category_names(categories))  # type: ignore[arg-type]


def _is_items(value: object, *keys: str) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and all(_hashable(item.get(k)) for k in keys) for item in value)


def _hashable(value: object) -> bool:
    return isinstance(value, str | int | float)


def _category_names(categories: Sequence[Item]) -> dict[object, str]:
    ordered = sorted(categories, key=lambda c: (isinstance(c["id"], str), c["id"]))
    return {c["id"]: str(c["name"]) for c in ordered}


def used_categories(files: Sequence[CocoFile]) -> list[str]:
    """The category names of all files.

    Left out is a category 0 that no annotation has while others do: Roboflow writes its project's name there.
    """
    used = {a["category_id"] for f in files for a in f.annotations}
    names = [name for f in files for ident, name in f.categories.items() if ident != 0 or 0 in used or not used]
    return list(dict.fromkeys(names))


def coco_entries(file: CocoFile, part: CocoPart, classes: ClassMap) -> tuple[list[Entry], list[Problem], Counter[str]]:
    """Every image of the file with its annotations, what is wrong, and how many annotations of which category were not wanted."""
    annotations, problems, dropped = _annotations(file, classes)
    entries: list[Entry] = []
    seen: set[object] = set()  # file names and ids
    for image in file.images:
        name = str(image["file_name"])
        uri = find_image(name, part)
        if uri is None:
            problems.append(Problem(severity="error", kind="missing file", uri=_expected(name, file), detail=f"listed in {file.uri}"))
        elif uri in seen or ("id", image["id"]) in seen:
            detail = f"{file.uri} has another image entry with this file name or the id {image['id']}"
            problems.append(Problem(severity="error", kind="listed twice", uri=uri, detail=detail))
        else:
            seen |= {uri, ("id", image["id"])}
            entries.append(Entry(uri=uri, annotations=tuple(annotations.get(image["id"], ())), size=_claimed_size(image)))
    return entries, problems, dropped


def unlisted_images(parts: Sequence[CocoPart], listed: Collection[str]) -> list[Problem]:
    """A warning for each folder of listed images (``listed``: their URIs) that also holds images which no part lists.

    Where a COCO file was named instead of a folder on this machine, nothing around it is looked at.
    """
    known, folders = set(listed), {storage.parent(uri) for uri in listed}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for uri in sorted({part.tree.uri(f) for part in parts for f in part.tree.files if f.lower().endswith(IMAGE_SUFFIXES)} - known):
        if (folder := storage.parent(uri)) in folders:
            found[folder].append(storage.name(uri))
    files = " and ".join(part.file for part in parts)
    return [
        Problem(severity="warning", kind="unlisted image", uri=folder, detail=f"{_few(names)} not in {files}, so not used")
        for folder, names in found.items()
    ]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} image{'s' * (len(names) > 1)} ({', '.join(names[:3])}{more})"


def _expected(name: str, file: CocoFile) -> str:
    """Where the COCO file says that an image is."""
    return name if _ABSOLUTE.match(name) or "://" in name else f"{storage.parent(file.uri)}/{name}"


def _claimed_size(image: Item) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0 else None


def _annotations(file: CocoFile, classes: ClassMap) -> tuple[dict[object, list[RawAnnotation]], list[Problem], Counter[str]]:
    known = {image["id"] for image in file.images}
    by_image: defaultdict[object, list[RawAnnotation]] = defaultdict(list)
    problems: list[Problem] = []
    dropped: Counter[str] = Counter()
    for i, annotation in enumerate(file.annotations):
        name = f"annotation {annotation.get('id', f'number {i}')}"
        category = file.categories.get(annotation["category_id"])
        if category is None:
            problems.append(_unknown(file, "unknown category", f"{name} has category_id {annotation['category_id']}"))
        elif annotation["image_id"] not in known:
            problems.append(_unknown(file, "unknown image", f"{name} has image_id {annotation['image_id']}"))
        elif (label := classes.index(category)) is None:
            dropped[category] += 1
        else:
            crowd = bool(annotation.get("iscrowd", 0))
            raw = RawAnnotation(name=name, label=label, segmentation=annotation.get("segmentation"), crowd=crowd)
            by_image[annotation["image_id"]].append(raw)
    return by_image, problems, dropped


def _unknown(file: CocoFile, kind: str, detail: str) -> Problem:
    return Problem(severity="error", kind=kind, uri=file.uri, detail=detail)


def find_image(file_name: str, part: CocoPart) -> str | None:
    """The URI of an image that a COCO file names, or None.

    An absolute name is taken as it is, and where nothing is there, by its last part (the file was written on another machine). A
    relative one is tried in the JSON's folder and in the data set's, then under ``images/`` and under the split's folder there
    (``train2017`` for ``instances_train2017.json``).
    """
    name = file_name.replace("\\", "/")
    if name.startswith("s3://") or _ABSOLUTE.match(name):
        if not re.match("[A-Za-z]:", name) and storage.exists(name):
            return storage.resolve(name)
        name = posixpath.basename(name)
    paths = (posixpath.normpath(posixpath.join(base, name)) for base in _bases(part))
    return next((part.tree.uri(path) for path in paths if part.tree.has(path)), None)


def _bases(part: CocoPart) -> list[str]:
    folder, stem = posixpath.dirname(part.file), posixpath.splitext(posixpath.basename(part.file))[0]
    word = re.search(r"(train|valid|val)\w*$", stem)
    splits = list(dict.fromkeys(s for s in (word.group(0) if word else None, part.split) if s))
    places = [folder, *(posixpath.join(folder, "images", s) for s in ["", *splits]), *(posixpath.join(folder, s) for s in splits)]
    places += ["", "images", *(posixpath.join("images", s) for s in splits), *splits]
    return list(dict.fromkeys(p.rstrip("/") for p in places))
