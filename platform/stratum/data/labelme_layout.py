"""Where Labelme's JSON files lie: beside their images, all in one folder, or in folders for training and validation."""

from stratum import storage
from stratum.data.images import IMAGE_SUFFIXES
from stratum.data.palette import NAMING_FILES
from stratum.data.parts import SPLITS, LabelmePart, Tree
from stratum_models.errors import UserError

MANY = 8  # more JSON files than a COCO data set has: they may be Labelme's, with their images elsewhere


def labelme_layout(tree: Tree) -> tuple[LabelmePart, LabelmePart | None] | None:
    """The training part and the validation part; None where the JSON files of the tree are no such files.

    A folder ``train`` or ``val`` at any level says to which part its files belong; with neither, all are one part.
    """
    stems = {name.rsplit(".", 1)[0] for name in tree.files if name.lower().endswith(IMAGE_SUFFIXES)}
    names = [n for n in tree.files if n.lower().endswith(".json") and n.rsplit("/", 1)[-1].lower() not in NAMING_FILES]
    paired = [n for n in names if n.rsplit(".", 1)[0] in stems]
    probe = paired or (names if len(names) > MANY else [])
    if not any(is_labelme(tree.uri(name)) for name in probe[:MANY]):  # the first may be broken, which is said where it is read
        return None
    train, val = ([n for n in names if _split_of(n) == split] for split in ("train", "val"))
    if train and val:
        return _part(tree, train, "train"), _part(tree, val, "val")
    return _part(tree, names, None), None


def is_labelme(uri: str) -> bool:
    """Whether a JSON file is one of Labelme's. A broken one is none here; its own reader says what is wrong."""
    try:
        content = storage.read_json(uri)
    except UserError:
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _split_of(name: str) -> str | None:
    folders = name.lower().split("/")[:-1]
    return next((split for split, spellings in SPLITS.items() if any(s in folders for s in spellings)), None)


def _part(tree: Tree, files: list[str], split: str | None) -> LabelmePart:
    own = {name.rsplit(".", 1)[0] for name in files}
    folders = {name.rpartition("/")[0] for name in files}
    beside = [n for n in tree.files if n.lower().endswith(IMAGE_SUFFIXES) and n.rpartition("/")[0] in folders]
    return LabelmePart(tree, tuple(files), tuple(n for n in beside if n.rsplit(".", 1)[0] not in own), split)
