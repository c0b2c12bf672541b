"""Pascal VOC: ``JPEGImages``, ``SegmentationClass`` with palette PNGs, and lists of names in ``ImageSets/Segmentation``."""

from stratum import storage
from stratum.data.images import IMAGE_SUFFIXES
from stratum.data.parts import SPLITS, MaskPart, Tree
from stratum_models.errors import UserError

# fmt: off
CLASSES = (  # of the challenge itself, for a set that names no others
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_MASKS, _IMAGES, _LISTS = "SegmentationClass/", "JPEGImages/", "ImageSets/Segmentation/"


def voc_layout(tree: Tree) -> tuple[MaskPart, MaskPart | None] | None:
    """The training part and the validation part where a tree is laid out so, at its top or in a folder such as ``VOC2012``.

    Without a list of training images all that have masks are one part. Raises ``UserError`` where there are several such folders.
    """
    tops = sorted({name[: name.index(_MASKS)] for name in tree.files if name.startswith(_MASKS) or f"/{_MASKS}" in name})
    if len(tops) > 1:
        raise UserError(f"several folders with {_MASKS} under {tree.root}: {', '.join(tops)}; name one with --data")
    if not tops:
        return None
    top = tops[0]
    images, masks = (_by_stem(tree, top + folder) for folder in (_IMAGES, _MASKS))
    train, val = (_part(tree, top, split, images, masks) for split in ("train", "val"))
    return train or _whole(tree, top, images, masks), val if train else None


def _by_stem(tree: Tree, prefix: str) -> dict[str, str]:
    names = [n for n in tree.files if n.startswith(prefix) and n.lower().endswith(IMAGE_SUFFIXES)]
    return {n.removeprefix(prefix).rsplit(".", 1)[0]: n for n in names}


def _part(tree: Tree, top: str, split: str, images: dict[str, str], masks: dict[str, str]) -> MaskPart | None:
    listed = next((name for s in SPLITS[split] if tree.has(name := f"{top}{_LISTS}{s}.txt")), None)
    if listed is None:
        return None
    lines = storage.read_bytes(tree.uri(listed)).decode("utf-8", errors="replace").splitlines()
    stems = dict.fromkeys(line.split()[0] for line in lines if line.strip())
    pairs = tuple((images.get(stem, f"{top}{_IMAGES}{stem}.jpg"), masks.get(stem)) for stem in stems)
    return MaskPart(tree, pairs, (), split, "voc")


def _whole(tree: Tree, top: str, images: dict[str, str], masks: dict[str, str]) -> MaskPart:
    """All masks with their images: VOC itself has many images that nobody labelled, which are not missed."""
    pairs = tuple((images[stem], mask) for stem, mask in masks.items() if stem in images)
    return MaskPart(tree, pairs, tuple(mask for stem, mask in masks.items() if stem not in images), None, "voc")
