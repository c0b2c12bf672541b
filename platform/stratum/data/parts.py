"""The parts of a data set: which files belong together, before any of them is read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from stratum import storage

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}  # and their spellings


@dataclass(frozen=True)
class Tree:
    """The files under ``root``, by their path relative to it."""

    root: str
    files: tuple[str, ...]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.files)

    def has(self, name: str) -> bool:
        """Whether there is a file of this relative path; ``..`` may lead out of the tree."""
        if not storage.is_remote(self.root):
            return Path(self.root, name).is_file()
        return storage.exists(self.uri(name)) if name.startswith("../") else name in self._names

    def uri(self, name: str) -> str:
        """The whole URI of a relative path."""
        return storage.join(self.root, *name.split("/"))


@dataclass(frozen=True)
class CocoPart:
    """A COCO JSON (relative to the tree) and the split it stands for, if any."""

    tree: Tree
    file: str
    split: str | None


@dataclass(frozen=True)
class MaskPart:
    """Images and their masks (relative to the tree); a mask of None is missing."""

    tree: Tree
    pairs: tuple[tuple[str, str | None], ...]
    orphans: tuple[str, ...]  # masks without an image
    split: str | None
    kind: Literal["folder", "instances", "voc"] = "folder"  # "instances": the folder's name says that its masks hold instance ids


@dataclass(frozen=True)
class LabelmePart:
    """Labelme's JSON files, one for each image (relative to the tree)."""

    tree: Tree
    files: tuple[str, ...]
    unlabelled: tuple[str, ...]  # images beside them without a file of their own
    split: str | None


Part = CocoPart | MaskPart | LabelmePart
