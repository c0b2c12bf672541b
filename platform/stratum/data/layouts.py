"""Where a data set keeps its images and labels, found by convention."""

import re
from collections.abc import Sequence
from dataclasses import replace

from stratum import storage
from stratum.data.images import IMAGE_SUFFIXES
from stratum.data.labelme_layout import labelme_layout
from stratum.data.palette import NAMING_FILES
from stratum.data.parts import SPLITS, CocoPart, MaskPart, Part, Tree
from stratum.data.voc import voc_layout
from stratum_models.errors import UserError

KNOWN = (
    "train.json and val.json (also under annotations/, or as instances_train*.json or stuff_train*.json); "
    "train/_annotations.coco.json and valid/_annotations.coco.json; one COCO JSON, which is split; "
    "images/ with masks/ (or labels/, instances/), also inside train/ and val/: of instance ids, or of classes where classes.json or "
    "palette.json names them; Pascal VOC's JPEGImages/ with SegmentationClass/; Labelme's JSON files beside their images"
)
_MASK_FOLDERS = ("masks", "labels", "instances")
# Where the annotation file of a split may be, the most telling name first; {s} is a spelling of the split.
_PATTERNS = (
    r"{s}\.json",
    r"annotations/{s}\.json",
    r"(annotations/)?instances_{s}[^/]*\.json",
    r"(annotations/)?stuff_{s}[^/]*\.json",
    r"{s}/_annotations\.coco\.json",
    r"{s}/(annotations|instances|{s}|coco|labels)\.json",
    r"(annotations/)?[^/]*[_-]{s}\.json",
)
_SINGLE = (r"_annotations\.coco\.json", r"(annotations/)?(annotations|instances|coco|labels)\.json", r"(annotations/)?[^/]*\.json")


def find_layout(uri: str) -> tuple[Part, Part | None]:
    """The training part and the validation part; None for the latter where one part is to be split.

    Raises ``UserError`` where nothing is at the URI or no known layout fits.
    """
    uri = storage.resolve(uri)
    if uri.lower().endswith(".json") and storage.exists(uri):
        return _single_file(uri), None
    # On S3 the listing itself says what is the matter: no such bucket, nothing under that name, denied, unreachable.
    files = storage.list_files(uri) if storage.is_remote(uri) or storage.exists(uri) else []
    if not files:
        raise UserError(f"no data at {uri}: neither a folder with files nor a COCO JSON; check --data")
    tree = _tree(uri, files)
    found = voc_layout(tree) or labelme_layout(tree) or _coco_layout(tree) or _mask_layout(tree)
    if found is None:
        raise UserError(f"no annotation file under {uri} ({len(files)} files); known layouts: {KNOWN}")
    return found


def _tree(root: str, files: Sequence[str]) -> Tree:
    prefix = root.rstrip("/") + "/"
    return Tree(root.rstrip("/"), tuple(sorted(f.removeprefix(prefix) for f in files)))


def _single_file(uri: str) -> CocoPart:
    folder, name = uri.rsplit("/", 1)
    if folder.rsplit("/", 1)[-1] == "annotations":  # the images are beside that folder
        folder, name = folder.rsplit("/", 1)[0], f"annotations/{name}"
    # On this machine nothing is listed: such a file may lie in a folder full of other things.
    return CocoPart(_tree(folder, storage.list_files(folder) if storage.is_remote(folder) else [uri]), name, _split_of(name))


def _split_of(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, spellings in SPLITS.items() if any(s in words for s in spellings)), None)


def _coco_layout(tree: Tree) -> tuple[Part, Part | None] | None:
    names = [n for n in tree.files if n.lower().endswith(".json") and n.rsplit("/", 1)[-1].lower() not in NAMING_FILES]
    train, val = (_split_file(tree, names, split) for split in ("train", "val"))
    if train and val:
        return CocoPart(tree, train, "train"), CocoPart(tree, val, "val")
    if train:
        return CocoPart(tree, train, "train"), None
    single = val or _first_match(tree, names, _SINGLE)
    return (CocoPart(tree, single, _split_of(single)), None) if single else None


def _split_file(tree: Tree, names: Sequence[str], split: str) -> str | None:
    spelling = "(" + "|".join(SPLITS[split]) + ")"
    return _first_match(tree, names, tuple(p.replace("{s}", spelling) for p in _PATTERNS))


def _first_match(tree: Tree, names: Sequence[str], patterns: Sequence[str]) -> str | None:
    for pattern in patterns:
        matches = [n for n in names if re.fullmatch(pattern, n, re.IGNORECASE)]
        if len(matches) > 1:
            raise UserError(f"several annotation files under {tree.root}: {', '.join(matches[:5])}; name one with --data")
        if matches:
            return matches[0]
    return None


def _mask_layout(tree: Tree) -> tuple[Part, Part | None] | None:
    train, val = (_mask_part(tree, split) for split in ("train", "val"))
    flat = None if train else _mask_part(tree, None)
    if not (train or val or flat):
        return None
    val = val or _bare_part(tree, "val")
    if flat and val:  # images/val/ lies in images/
        flat = replace(flat, pairs=tuple(pair for pair in flat.pairs if pair not in val.pairs))
    train = train or flat or _bare_part(tree, "train")
    return (train, val) if train else None


def _bare_part(tree: Tree, split: str) -> MaskPart | None:
    """The images of a split without any mask: each is missing one, which must be said."""
    for spelling in SPLITS[split]:
        for prefix in (f"{spelling}/images/", f"images/{spelling}/"):
            if images := _stems(tree, prefix):
                return MaskPart(tree, tuple((name, None) for name in images), (), split)
    return None


def _mask_part(tree: Tree, split: str | None) -> MaskPart | None:
    for spelling in SPLITS[split] if split else ("",):
        for folder in _MASK_FOLDERS:
            for pattern in ("{s}/{f}/", "{f}/{s}/") if spelling else ("{f}/",):
                images = _stems(tree, pattern.format(s=spelling, f="images"))
                masks = _stems(tree, pattern.format(s=spelling, f=folder))
                if images and masks:
                    by_stem = {stem: name for name, stem in masks.items()}
                    pairs = tuple((name, by_stem.get(stem)) for name, stem in images.items())
                    used = {mask for _, mask in pairs}
                    orphans = tuple(name for name in masks if name not in used)
                    return MaskPart(tree, pairs, orphans, split, "instances" if folder == "instances" else "folder")
    return None


def _stems(tree: Tree, prefix: str) -> dict[str, str]:
    """The images under a folder of the tree, each with its path in that folder without the suffix."""
    names = [n for n in tree.files if n.startswith(prefix) and n.lower().endswith(IMAGE_SUFFIXES)]
    return {n: n.removeprefix(prefix).rsplit(".", 1)[0] for n in names}
