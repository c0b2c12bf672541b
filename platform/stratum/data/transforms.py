"""Augmentation of one image with its labels, through ``torchvision.transforms.v2`` on tv_tensors.

Image and labels move through the same calls, so they cannot drift apart; boxes are taken from the masks afterwards, which is tighter than
moving the boxes. What is cut away is cut before anything expensive happens. Every random choice comes from a generator that the
caller passes: the same generator gives the same picture in any process.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from stratum.data.sample import Sample
from stratum.data.scene import Scene, to_sample, to_scene
from stratum_models.batching import scale_factor
from stratum_models.errors import UserError

Size = tuple[int, int]  # height, width in pixels
GREY = 114  # of what lies outside the image: near the mean of usual photographs
HUE_SHARE = 0.25  # hue costs ten times what brightness does: a quarter of the images is enough variety


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """What is done to a training image. Probabilities and fractions are in 0..1, lengths in pixels.

    Without ``crop`` (and without mosaic) images keep different sizes. LosNet's own choice is ``PAPER`` (section 4.1), that of
    the two-stage paper ``TWO_STAGE``.
    """

    short_sides: tuple[int, ...] = ()  # the shorter side is scaled to one of these; empty: by ``scale``
    scale: float = 1.0  # the factor of images of any size, where there are no ``short_sides``
    max_long: int | None = None  # the longer side never gets longer than this (before ``scale_range``); None: 4 times ``short_sides``
    scale_range: tuple[float, float] = (1.0, 1.0)  # a further factor, drawn evenly in its logarithm
    crop: int | None = None  # side of the square that is cut out or padded to
    flip_horizontal: float = 0.5
    flip_vertical: float = 0.5
    rotate90: bool = False  # by a random multiple of 90 degrees
    rotation: float = 0.0  # by up to so many degrees either way, in half of the images; nothing is known of what comes in at the corners
    light: float = 0.0  # brightness and contrast by up to this share, in half of the images
    photometric: float = 0.0  # brightness, contrast, saturation by up to this share, hue by a twentieth of it
    blur: float = 0.0  # probability
    noise: float = 0.0  # largest standard deviation, as a share of the full scale
    copy_paste: float = 0.0  # probability that instances of another image are put on top
    mosaic: float = 0.0  # probability that four images are put together
    mosaic_size: int | None = None  # side of the mosaic before cropping; None: ``crop``
    min_area: float = 1.0  # instances with fewer pixels are dropped
    min_visible: float = 0.0  # instances of which less than this fraction is left are dropped
    interpolation: Literal["bilinear", "nearest"] = "bilinear"  # of the image; masks are always nearest

    def __post_init__(self) -> None:
        for name in ("flip_horizontal", "flip_vertical", "light", "photometric", "blur", "noise", "copy_paste", "mosaic", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation: {name}={getattr(self, name)} is outside 0..1")
        for length in (*self.short_sides, self.max_long, self.crop, self.mosaic_size):
            if length is not None and length < 8:
                raise UserError(f"augmentation: a side of {length} pixels is too small; give at least 8")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"augmentation: rotation={self.rotation} is outside 0..180 degrees")
        if self.scale <= 0:
            raise UserError(f"augmentation: scale={self.scale} must be above 0")
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise UserError(f"augmentation: scale_range={self.scale_range} must be (low, high) with 0 < low <= high")
        if self.mosaic and self.mosaic_side is None:
            raise UserError("augmentation: mosaic needs mosaic_size or crop")

    @property
    def mosaic_side(self) -> int | None:
        """Side of a mosaic in pixels."""
        return self.mosaic_size or self.crop


NONE = AugmentSpec(flip_horizontal=0, flip_vertical=0)
PAPER = AugmentSpec(short_sides=tuple(range(300, 481, 30)), max_long=640, flip_vertical=0)
STRONG = AugmentSpec(
    short_sides=(256,),
    scale_range=(0.6, 1.6),
    crop=256,
    rotate90=True,
    photometric=0.3,
    blur=0.05,
    noise=0.03,
    copy_paste=0.3,
    mosaic=0.5,
    min_area=12,
    min_visible=0.15,
)
TWO_STAGE = AugmentSpec(flip_vertical=0, rotation=180, light=0.1)  # the two-stage paper's, section 4
PRESETS = {"none": NONE, "paper": PAPER, "strong": STRONG, "two_stage": TWO_STAGE}
PAPER_TEST_SIZE = (480, 640)  # shorter side and longest: the authors' configuration


def resolve_augmentation(name: str, size: int | None = None, tile: int = 0) -> AugmentSpec:
    """The preset of that name, at the scale of ``size``: the shorter side in pixels of the images that the model is shown.

    ``strong`` cuts squares of that side from images of that scale; ``none`` and ``two_stage`` scale the shorter side to it, so that
    training sees what validation sees. 0 leaves images as they are, None the preset. ``paper`` ignores it on purpose: its many scales,
    300 to 480 pixels, are the paper's choice (section 4.1).
    The tiles of an image, with sides of at most ``tile`` pixels, are not all alike: they are all scaled by ``size / tile``.
    Raises ``UserError`` for an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"augmentation {name!r} is not known; known are {', '.join(PRESETS)}")
    spec = PRESETS[name]
    if size is None or name == "paper":
        return spec
    crop = (size or tile or spec.crop) if spec.crop else None
    if tile or not size:
        return replace(spec, crop=crop, short_sides=(), scale=(size or tile) / tile if tile else 1.0)
    return replace(spec, crop=crop, short_sides=(size,))


def prediction_size(name: str, size: int | None = None, tile: int = 0) -> dict[str, object]:
    """The model options (see ``InputSize``) that fit the augmentation of :func:`resolve_augmentation`."""
    if name == "paper":
        return dict(zip(("input_short", "input_long"), PAPER_TEST_SIZE, strict=True))
    if not size or size == tile:
        return {}
    return {"input_scale": size / tile} if tile else {"input_short": size}


class TrainTransform:
    """Augments samples one after the other; the n-th call for a seed always draws the same."""

    def __init__(self, spec: AugmentSpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed
        self._rng = np.random.default_rng(seed)

    def __call__(self, sample: Sample) -> Sample:
        """The sample augmented; mosaic and copy-paste need other images and are ``AugmentedSet``'s."""
        return finish(frame(to_scene(sample), self.spec, self._rng), self.spec, self._rng)


def build_train_transform(spec: AugmentSpec, seed: int) -> Callable[[Sample], Sample]:
    """What ``build_loader`` takes as ``transform``: there, draws depend on seed, epoch and index, not on the order of calls."""
    return TrainTransform(spec, seed)


def frame(scene: Scene, spec: AugmentSpec, rng: np.random.Generator, size: Size | None = None) -> Scene:
    """Scales, cuts or pads to ``size`` (by default the spec's crop), flips and turns."""
    if size is None and spec.crop is not None:
        size = (spec.crop, spec.crop)
    turns = int(rng.integers(4)) if spec.rotate90 else 0
    factor = _factor(scene.size, spec, rng)
    if size is None:
        out = (max(1, round(scene.size[0] * factor)), max(1, round(scene.size[1] * factor)))
        scene = _resized(scene, (0, 0), scene.size, out, spec)
    else:
        scene = window(scene, factor, size if turns % 2 == 0 else size[::-1], spec, rng)
    scene = _oriented(scene, turns, rng.random() < spec.flip_horizontal, rng.random() < spec.flip_vertical)
    return _rotated(scene, rng.uniform(-spec.rotation, spec.rotation)) if spec.rotation and rng.random() < 0.5 else scene


def finish(scene: Scene, spec: AugmentSpec, rng: np.random.Generator) -> Sample:
    """Light and colour, then separate masks with tight boxes; what is too small or too far cut is dropped."""
    scene = replace(scene, image=_photometric(scene.image, spec, rng))
    return to_sample(scene, min_area=spec.min_area, min_visible=spec.min_visible)


def window(scene: Scene, factor: float, size: Size, spec: AugmentSpec, rng: np.random.Generator) -> Scene:
    """A random part of the scene, scaled by ``factor``, of exactly ``size``; where the scene is smaller it is padded around.

    The part is cut in the source before it is scaled, so that the work is that of the result.
    """
    start, part, scaled, before = [], [], [], []
    for length, out in zip(scene.size, size, strict=True):
        inner = min(out, max(1, round(length * factor)))
        taken = min(length, max(1, round(inner / factor)))
        start.append(int(rng.integers(length - taken + 1)))
        part.append(taken)
        scaled.append(inner)
        before.append(int(rng.integers(out - inner + 1)))
    scene = _resized(scene, (start[0], start[1]), (part[0], part[1]), (scaled[0], scaled[1]), spec)
    return _padded(scene, size, (before[0], before[1]))


def _factor(size: Size, spec: AugmentSpec, rng: np.random.Generator) -> float:
    """By how much the image is scaled."""
    factor = spec.scale
    if spec.short_sides:
        factor = scale_factor(size, spec.short_sides[int(rng.integers(len(spec.short_sides)))], spec.max_long)
    elif spec.max_long is not None:
        factor = min(factor, spec.max_long / max(size))
    low, high = np.log(spec.scale_range)
    return float(factor * np.exp(rng.uniform(low, high)))


def _resized(scene: Scene, start: Size, part: Size, size: Size, spec: AugmentSpec) -> Scene:
    """The part of the scene that begins at ``start``, resized to ``size``.

    torchvision resizes masks by its older "nearest", which is off by half a pixel against the bilinear image: the exact one is asked for.
    """
    exact = InterpolationMode.NEAREST_EXACT
    mode = exact if spec.interpolation == "nearest" else InterpolationMode.BILINEAR
    image = F.crop(scene.image, *start, *part)
    ids = F.crop(scene.ids, *start, *part)
    if part != size:
        image = F.resize(image, list(size), interpolation=mode, antialias=True)
        ids = tv_tensors.wrap(F.resize_image(ids.as_subclass(torch.Tensor), list(size), interpolation=exact), like=ids)
    scale = size[0] * size[1] / (part[0] * part[1])
    return replace(scene, image=image, ids=ids, areas=scene.areas * scale)


def _padded(scene: Scene, size: Size, before: Size) -> Scene:
    if scene.size == size:
        return scene
    (top, left), (height, width) = before, scene.size
    padding = [left, top, size[1] - width - left, size[0] - height - top]
    ids = F.pad(scene.ids, padding, fill=scene.background)
    return replace(scene, image=F.pad(scene.image, padding, fill=GREY), ids=ids)


def _oriented(scene: Scene, turns: int, horizontal: bool, vertical: bool) -> Scene:
    image, ids = scene.image, scene.ids
    if turns:
        image, ids = (F.rotate(x, 90.0 * turns, expand=True) for x in (image, ids))
    if horizontal:
        image, ids = (F.horizontal_flip(x) for x in (image, ids))
    if vertical:
        image, ids = (F.vertical_flip(x) for x in (image, ids))
    return replace(scene, image=image.contiguous(), ids=ids.contiguous())


def _rotated(scene: Scene, degrees: float) -> Scene:
    """Turned about the middle, at the same size."""
    image = F.rotate(scene.image, degrees, interpolation=InterpolationMode.BILINEAR, fill=GREY)
    ids = F.rotate(scene.ids, degrees, interpolation=InterpolationMode.NEAREST, fill=scene.background)
    return replace(scene, image=image, ids=ids)


def _photometric(image: Any, spec: AugmentSpec, rng: np.random.Generator) -> Any:
    """Brightness, contrast, saturation and hue, then blur and noise, each by its own draw."""
    draws = rng.uniform(-1, 1, size=4) * spec.photometric
    if spec.light and rng.random() < 0.5:
        brightness, contrast = 1 + rng.uniform(-spec.light, spec.light, size=2)
        image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
    if spec.photometric:
        image = F.adjust_brightness(image, 1 + draws[0])
        image = F.adjust_contrast(image, 1 + draws[1])
        image = F.adjust_saturation(image, 1 + draws[2])
        if rng.random() < HUE_SHARE:
            image = F.adjust_hue(image, draws[3] / 20)
    if rng.random() < spec.blur:
        image = F.gaussian_blur(image, [5, 5], [rng.uniform(0.4, 1.2)] * 2)
    if spec.noise and rng.random() < 0.5:
        image = _noisy(image, rng.uniform(0, spec.noise) * 255, int(rng.integers(2**62)))
    return image


def _noisy(image: Any, sigma: float, seed: int) -> Any:
    """Gaussian noise from a generator of its own: torchvision's takes the process's, which depends on what else ran."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return tv_tensors.wrap(noise.mul_(sigma).add_(image).round_().clamp_(0, 255).to(torch.uint8), like=image)
