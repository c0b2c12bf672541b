"""Files that say what the values or colours of class masks stand for: ``classes.json``, ``palette.json``, ``labelmap.txt``."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stratum import storage
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX

CLASSES_FILE, PALETTE_FILE, LABELMAP_FILE = "classes.json", "palette.json", "labelmap.txt"
NAMING_FILES = (PALETTE_FILE, LABELMAP_FILE, CLASSES_FILE)  # the most telling first
Colour = tuple[int, int, int]
_FORM = 'write ["background", "vessel"], or {"background": 0, "vessel": 1} for indices, or {"vessel": [255, 0, 0]} for colours'


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The raw classes of a data set by raw index, None for an index not in use; with colours where masks are colour-coded."""

    uri: str
    known: tuple[str | None, ...]
    colours: tuple[Colour, ...] = ()

    def indices(self, pixels: NDArray[np.generic]) -> NDArray[np.int32]:
        """The raw index of each colour of ``[H, W, 3]`` (or of grey ``[H, W]``): int32 ``[H, W]``, -1 where a colour has no class."""
        codes = _codes(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))
        own = np.array([(r << 16) | (g << 8) | b for r, g, b in self.colours], dtype=np.int64)
        order = np.argsort(own)
        place = np.minimum(np.searchsorted(own[order], codes), len(own) - 1)
        found = order[place]
        return np.where(own[found] == codes, found, -1).astype(np.int32)


def _codes(pixels: NDArray[np.generic]) -> NDArray[np.int64]:
    wide = pixels.astype(np.int64)
    codes: NDArray[np.int64] = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return codes


def read_naming(uri: str) -> Naming:
    """Read such a file. Raises ``UserError`` naming it where it is of no known form."""
    if uri.lower().endswith(".txt"):
        return _labelmap(uri)
    content = storage.read_json(uri)
    if isinstance(content, list) and content and all(isinstance(name, str) and name for name in content):
        return _checked(uri, dict(zip(content, range(len(content)), strict=True)) if len(set(content)) == len(content) else None)
    if isinstance(content, dict) and content and all(_is_index(value) for value in content.values()):
        return _checked(uri, content)
    if isinstance(content, dict) and content and all(_is_colour(value) for value in content.values()):
        return _coloured(uri, {name: (value[0], value[1], value[2]) for name, value in content.items()})
    raise UserError(f"{uri} names no classes: {_FORM}")


def _checked(uri: str, indices: Mapping[str, int] | None) -> Naming:
    if indices is None or len(set(indices.values())) < len(indices):
        raise UserError(f"{uri} names a class or an index twice; each class has one index")
    if len(indices) > IGNORE_INDEX:
        raise UserError(f"{uri} names {len(indices)} classes, but a mask has room for {IGNORE_INDEX}: 255 stands for what is ignored")
    by_index = {index: name for name, index in indices.items()}
    return Naming(uri=uri, known=tuple(by_index.get(i) for i in range(max(by_index) + 1)))


def _coloured(uri: str, colours: Mapping[str, Colour]) -> Naming:
    owners: dict[Colour, str] = {}
    for name, colour in colours.items():
        if colour in owners:
            raise UserError(f"{uri} gives the colour {list(colour)} to both {owners[colour]!r} and {name!r}; a colour has one class")
        owners[colour] = name
    return Naming(uri=uri, known=tuple(colours), colours=tuple(colours.values()))


def _labelmap(uri: str) -> Naming:
    """``name:r,g,b`` in each line, whatever follows a further colon, as CVAT writes it."""
    colours: dict[str, Colour] = {}
    for line in storage.read_bytes(uri).decode("utf-8", errors="replace").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        try:
            red, green, blue = (int(number) for number in rest.split(":")[0].split(","))
        except ValueError:
            raise UserError(f"{uri}: the line {line.strip()!r} is not of the form name:red,green,blue") from None
        if not name or name in colours or not _is_colour([red, green, blue]):
            raise UserError(f"{uri}: the line {line.strip()!r} names no class, one that is there already, or a colour outside 0..255")
        colours[name] = (red, green, blue)
    if not colours:
        raise UserError(f"{uri} names no classes: write name:red,green,blue in each line")
    return _coloured(uri, colours)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < IGNORE_INDEX


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
