"""From what a data set calls its pixels to the labels that a model learns.

A raw index is what a mask holds or what a shape was drawn for; a label is an index into the classes, or ``IGNORE_INDEX``. What
``--classes`` does not name becomes the background, so that a choice of classes is told apart from all the rest; ``--classes fog=ignore``
takes pixels out of training and metrics altogether. A class called ``ignore`` or ``__ignore__`` is always left out so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stratum.data.classes import ClassMap
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX

BACKGROUND = "background"
IGNORED = ("ignore", "__ignore__")
UNUSED = -1  # the label of a raw index that stands for nothing


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Classes of a data set, and the label of each raw index."""

    names: tuple[str, ...]
    labels: tuple[int, ...]  # by raw index: a label, IGNORE_INDEX or UNUSED
    known: tuple[str | None, ...]  # by raw index: the name in the data set

    def apply(self, raw: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Raw indices as labels ``uint8``, the same shape; ``IGNORE_INDEX`` stays unless it is a raw index itself.

        All of them must be in use: see :meth:`strangers`.
        """
        lookup = np.full(max(len(self.labels), IGNORE_INDEX) + 1, IGNORE_INDEX, dtype=np.uint8)
        lookup[: len(self.labels)] = np.array(self.labels, dtype=np.int64).astype(np.uint8)
        found: NDArray[np.uint8] = lookup[raw]
        return found

    def strangers(self, raw: NDArray[np.generic]) -> list[int]:
        """The values of a mask that stand for no class, in ascending order."""
        values = np.unique(raw).tolist()
        return [v for v in values if v != IGNORE_INDEX and (v >= len(self.labels) or self.labels[v] == UNUSED)]


def class_table(known: Sequence[str | None], wanted: ClassMap) -> ClassTable:
    """The table for a data set whose raw index ``i`` is called ``known[i]`` (None: not in use).

    Raises ``UserError`` where ``wanted`` names what is not there, or more classes come out than a mask can hold.
    """
    present = [name for name in known if name is not None]
    resolved = wanted.resolve(present)
    names = [name for name in resolved.names if name not in IGNORED]
    owner = {category: name for name, categories in resolved.groups for category in categories}
    left_over = [name for name in present if name not in owner and name not in IGNORED]
    if left_over and BACKGROUND not in names:
        names.insert(0, BACKGROUND)
    if len(names) > IGNORE_INDEX:
        raise UserError(f"{len(names)} classes are too many: a class mask has room for {IGNORE_INDEX}; merge some with --classes")
    label = {name: i for i, name in enumerate(names)}

    def label_of(name: str | None) -> int:
        if name is None:
            return UNUSED
        name = owner.get(name, name if name in IGNORED else BACKGROUND)
        return IGNORE_INDEX if name in IGNORED else label[name]

    return ClassTable(names=tuple(names), labels=tuple(label_of(name) for name in known), known=tuple(known))
