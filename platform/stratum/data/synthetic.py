"""Synthetic ore as a data set: ``synthetic://ore?images=64&size=256&seed=0``; and what all ``synthetic://`` scenes are called.

An image depends on the parameters and on its number alone, so that it is the same in every process, and is drawn when it is first
asked for. The last quarter of the images is the validation set.
"""

from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from stratum.data.ore_scene import OreLook, draw_ore
from stratum.data.sample import Sample
from stratum.data.scene import tight_boxes
from stratum.data.synthetic_masks import SCENES as MASK_SCENES
from stratum.data.synthetic_masks import MaskSceneSet, MaskSceneSpec, draw_masked
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget

SCHEME = "synthetic"
SCENES = ("ore", *MASK_SCENES)
CLASSES = ("ore",)
DISTRIBUTIONS = ("lognormal", "rosin_rammler")
KEPT_BYTES = 256 * 2**20  # of samples in a process


@dataclass(frozen=True, kw_only=True)
class OreSpec:
    """What ``synthetic://ore`` can be asked for; every field is a parameter of the URI.

    Diameters are drawn by number: log-normal with median ``d50`` and deviation ``spread`` of the logarithm, or Rosin-Rammler (Weibull) with
    median ``d50`` and modulus ``1 / spread``; they are kept between 4 pixels and 0.7 of the side.
    """

    images: int = 64
    size: int = 256  # side of the images in pixels
    seed: int = 0
    rocks: float = 60.0  # poured in an image, on average; with the other defaults they cover about two fifths of it
    distribution: str = "lognormal"
    d50: float = 0.0  # pixels; 0: a tenth of the side
    spread: float = 0.45
    empty: float = 0.1  # share of images without rocks
    dust: float = 0.5
    light: float = 0.5  # how uneven the light is
    fines: float = 0.7  # share of the belt under fines
    min_area: int = 20  # rocks of which fewer pixels are visible are not labelled

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {"images": (2, 1e6), "size": (32, 4096), "seed": (0, 2**62), "rocks": (0, 5000)}
        limits |= {"d50": (0, self.size / 2), "spread": (0.01, 2), "empty": (0, 1), "dust": (0, 1), "light": (0, 1), "fines": (0, 1)}
        limits |= {"min_area": (1, self.size**2)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{SCHEME}://ore: {name}={getattr(self, name)} is outside {low:g}..{high:g}")
        if self.distribution not in DISTRIBUTIONS:
            raise UserError(f"{SCHEME}://ore: distribution={self.distribution!r} is not known; known are {', '.join(DISTRIBUTIONS)}")

    @property
    def median(self) -> float:
        """Median diameter in pixels, by number."""
        return self.d50 or self.size / 10

    @property
    def uri(self) -> str:
        """The URI that gives this specification, with every parameter that is not the default."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{SCHEME}://ore" + ("?" + "&".join(changed) if changed else "")

    def diameters(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """The diameters of the rocks of one image, in pixels."""
        count = int(rng.poisson(self.rocks))
        if self.distribution == "lognormal":
            drawn = self.median * np.exp(self.spread * rng.standard_normal(count))
        else:
            drawn = self.median * (rng.standard_exponential(count) / np.log(2)) ** self.spread
        return np.clip(drawn, 4, 0.7 * self.size)


class SyntheticSet(Dataset[Sample]):
    """Some images of a specification, drawn when asked for and kept while there is room."""

    def __init__(self, spec: OreSpec, numbers: range) -> None:
        self.spec = spec
        self.numbers = numbers
        self.uris = [f"{spec.uri}#{number}" for number in numbers]
        self._kept: dict[int, Sample] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        sample = self._kept.get(index)
        if sample is None:
            sample = draw_sample(self.spec, self.numbers[index])[0]
            assert isinstance(sample.target, InstanceTarget)
            self._room -= sample.image.numel() + sample.target.masks.numel()
            if self._room >= 0:
                self._kept[index] = sample
        return sample

    def diameters(self, index: int) -> NDArray[np.float64]:
        """The true diameters (pixels, of the whole outline, hidden parts included) of all rocks of an image, labelled or not."""
        return draw_sample(self.spec, self.numbers[index])[1]

    def __getstate__(self) -> dict[str, object]:
        """Without the images: each process draws its own."""
        return {**self.__dict__, "_kept": {}, "_room": KEPT_BYTES}


AnySet = SyntheticSet | MaskSceneSet
AnySpec = OreSpec | MaskSceneSpec


def load_synthetic(uri: str) -> tuple[AnySet, AnySet, tuple[str, ...]]:
    """Training set, validation set and class names of a ``synthetic://`` URI; unknown scenes and parameters are refused."""
    spec = parse_uri(uri)
    train = spec.images - max(1, round(spec.images / 4))
    parts = (range(train), range(train, spec.images))
    if isinstance(spec, OreSpec):
        return SyntheticSet(spec, parts[0]), SyntheticSet(spec, parts[1]), CLASSES
    return MaskSceneSet(spec, parts[0]), MaskSceneSet(spec, parts[1]), spec.classes


def parse_uri(uri: str) -> AnySpec:
    """The specification that a URI asks for."""
    parts = urlsplit(uri)
    if parts.scheme != SCHEME or parts.netloc not in SCENES or parts.path.strip("/"):
        raise UserError(f"{uri}: unknown synthetic scene; known are {', '.join(f'{SCHEME}://{s}' for s in SCENES)}")
    form: type[AnySpec] = OreSpec if parts.netloc == "ore" else MaskSceneSpec
    known: dict[str, type[int | float | str]] = {f.name: type(f.default) for f in fields(form) if f.name != "scene"}  # type: ignore[misc]
    values: dict[str, object] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise UserError(f"{uri}: unknown parameter {name!r}; known are {', '.join(known)}")
        try:
            values[name] = known[name](text)
        except ValueError:
            raise UserError(f"{uri}: {name}={text!r} is not a number ({known[name].__name__})") from None
    if parts.netloc == "ore":
        return OreSpec(**values)  # type: ignore[arg-type]
    return MaskSceneSpec(scene=parts.netloc, **values)  # type: ignore[arg-type]


def draw_sample(spec: AnySpec, number: int) -> tuple[Sample, NDArray[np.float64]]:
    """One image of a specification, and the true diameters of its rocks in pixels; a scene with class masks has none."""
    if isinstance(spec, MaskSceneSpec):
        return draw_masked(spec, number), np.zeros(0)
    rng = np.random.default_rng([spec.seed, number])
    # spread evenly, so that a small set has its share too and starts with rocks
    is_empty = int((number + 1) * spec.empty) > int(number * spec.empty)
    diameters = np.zeros(0) if is_empty else spec.diameters(rng)
    picture = draw_ore(spec.size, diameters, OreLook(dust=spec.dust, light=spec.light, fines=spec.fines), rng)
    visible = np.bincount(picture.ids.ravel(), minlength=len(diameters) + 1)[1:]
    labelled = np.flatnonzero(visible >= spec.min_area) + 1
    masks = picture.ids == labelled[:, None, None]
    target = InstanceTarget(
        boxes=torch.from_numpy(tight_boxes(masks)),
        labels=torch.zeros(len(masks), dtype=torch.int64),
        masks=torch.from_numpy(masks),
        crowd=torch.zeros(len(masks), dtype=torch.bool),
    )
    image = torch.from_numpy(picture.pixels).permute(2, 0, 1).contiguous()
    return Sample(image=image, target=target, uri=f"{spec.uri}#{number}"), picture.diameters
