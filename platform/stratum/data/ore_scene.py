"""Pictures of broken rock on a conveyor belt, drawn from numbers, with the exact visible part of every rock.

Rocks are convex polyhedra with worn edges under one light, poured over a bed of fines on a dark belt; large ones tend to end up on top, as
they do on a shaken belt. Shapes: ``S`` side of the picture in pixels, ``N`` rocks, ``h`` and ``w`` the size of one rock's patch.
Colours are ``float32`` in 0..1. Everything comes from the generator passed in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stratum.data.textures import Floats, smooth, spline, texture

ROCK_COLOURS = np.array(
    [[0.74, 0.58, 0.36], [0.66, 0.47, 0.27], [0.55, 0.40, 0.26], [0.80, 0.70, 0.50], [0.56, 0.56, 0.46], [0.50, 0.50, 0.50]],
    dtype=np.float32,
)
FINES_COLOUR = np.array([0.56, 0.40, 0.22], dtype=np.float32)
BELT_COLOUR = np.array([0.17, 0.22, 0.19], dtype=np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class OreLook:
    """What a scene looks like beside its rocks; each in 0..1."""

    dust: float  # how much haze and powder hide
    light: float  # how uneven the light is
    fines: float  # how much of the belt is covered by a bed of fines


@dataclass(frozen=True, eq=False, kw_only=True)
class OrePicture:
    """A picture and what is in it."""

    pixels: NDArray[np.uint8]  # [S, S, 3]
    ids: NDArray[np.int32]  # [S, S]: 0 nothing, i + 1 the visible part of rock i
    diameters: NDArray[np.float64]  # [N]: diameter in pixels of the circle that has the area of the whole outline, hidden parts included


@dataclass(frozen=True, eq=False, kw_only=True)
class _Canvas:
    """What is being painted, and what all rocks of a picture share."""

    colour: Floats  # [S, S, 3]
    ids: NDArray[np.int32]  # [S, S]
    light: Floats  # [3] towards the light, unit length; y points down
    tint: Floats  # [3] colour of the heap


def draw_ore(size: int, diameters: NDArray[np.float64], look: OreLook, rng: np.random.Generator) -> OrePicture:
    """Pours rocks of these diameters (pixels) onto a belt and takes a picture of ``size`` x ``size`` pixels.

    A picture without rocks shows the belt with hardly any fines: a negative.
    """
    light = _light(rng)
    bed = _bed(size, look.fines if len(diameters) else 0.1 * look.fines, rng)  # [S, S] how thick the fines lie
    tint = (rng.uniform(0.85, 1.1) * rng.normal(1, 0.04, 3)).astype(np.float32)
    canvas = _Canvas(colour=_ground(bed, light, tint, rng), ids=np.zeros((size, size), np.int32), light=light, tint=tint)
    centres = _pour(size, diameters, bed, rng)
    real = np.zeros(len(diameters))
    order = np.argsort(diameters * rng.uniform(0.5, 1.5, len(diameters)))
    for rock in order:
        real[rock] = _paint_rock(canvas, int(rock) + 1, centres[rock], float(diameters[rock]), rng)
    pixels = _photograph(canvas.colour, look, rng)
    return OrePicture(pixels=pixels, ids=canvas.ids, diameters=real)


def _light(rng: np.random.Generator) -> Floats:
    angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.6)
    light = np.array([np.cos(angle), np.sin(angle), height], dtype=np.float32)
    return np.asarray(light / np.linalg.norm(light), dtype=np.float32)


def _bed(size: int, share: float, rng: np.random.Generator) -> Floats:
    """Where fines lie on the belt, ``[size, size]`` in 0..1: patches with soft borders over about ``share`` of it."""
    hills = smooth(size, 3, rng)
    border = np.quantile(hills, 1 - share) if share < 1 else -1.0
    return np.asarray(np.clip((hills - border) * 12 + 0.5, 0, 1), dtype=np.float32)


def _ground(bed: Floats, light: Floats, tint: Floats, rng: np.random.Generator) -> Floats:
    """The belt with the fines on it ``[S, S, 3]``."""
    size = len(bed)
    belt = _belt(size, rng)
    # every pixel belongs to the nearest of many seeds, a grain as round as the distance to it says
    seeds = np.ones((size, size), dtype=bool)
    count = max(1, size * size // int(rng.integers(20, 50)))
    places = rng.integers(size, size=(count, 2))
    seeds[places[:, 0], places[:, 1]] = False
    nearest = ndimage.distance_transform_edt(seeds, return_distances=False, return_indices=True)
    radius = 0.85 * np.sqrt(size * size / count)
    down, across = (
        (own - near).astype(np.float32) / np.float32(radius) for own, near in zip(np.indices((size, size)), nearest, strict=True)
    )
    rough = texture(size, size, rng)
    rise = np.sqrt(np.clip(1 - across**2 - down**2 + 0.12 * rough, 0.02, 1))
    shade = 0.3 + 0.8 * np.clip(across * light[0] + down * light[1] + rise * light[2], 0, 1)
    own, place = rng.random((2, size, size), dtype=np.float32)[:, nearest[0], nearest[1]]  # what each grain has for itself
    grains = (shade * (0.75 + 0.5 * own) * (0.45 + 0.55 * rise) * (1 + 0.1 * rough))[..., None] * (FINES_COLOUR * tint)
    lies = bed > 0.15 + 0.7 * place  # single grains thin out where the bed ends
    return np.asarray(np.where(lies[..., None], grains, belt), dtype=np.float32)


def _belt(size: int, rng: np.random.Generator) -> Floats:
    """Dark rubber with streaks along its way ``[size, size, 3]``."""
    streaks = ndimage.gaussian_filter1d(rng.standard_normal(size + 16), 1.5)[8:-8] + 2 * (spline(size, 6) @ rng.random(9) - 0.5)
    wear = 1 + 0.12 * streaks[None, :] + 0.07 * texture(size, size, rng)
    if rng.random() < 0.5:
        wear = wear.T
    dusty = 0.25 * smooth(size, 5, rng)[..., None] ** 2
    belt = (BELT_COLOUR * np.float32(rng.uniform(0.7, 1.3))) * wear[..., None].astype(np.float32)
    return np.asarray(belt * (1 - dusty) + FINES_COLOUR * dusty)


def _pour(size: int, diameters: NDArray[np.float64], bed: Floats, rng: np.random.Generator) -> NDArray[np.float64]:
    """Centres ``[N, 2]`` (row, column) in pixels: the best of some tries for each rock, from the largest down.

    Best is on the bed and away from what already lies there; a crowded belt still overlaps.
    """
    centres = np.zeros((len(diameters), 2))
    placed: list[int] = []
    for rock in np.argsort(-diameters):
        tries = rng.uniform(-0.02, 1.02, (8, 2)) * size
        inside = np.clip(tries.astype(int), 0, size - 1)
        score = 0.7 * bed[inside[:, 0], inside[:, 1]].astype(float)
        if placed:
            apart = np.linalg.norm(tries[:, None] - centres[placed], axis=2)  # [8, placed]
            reach = (diameters[rock] + diameters[placed]) / 2
            score += np.minimum((apart / reach).min(axis=1), 1.0)
        centres[rock] = tries[score.argmax()]
        placed.append(int(rock))
    return centres


def _outline(diameter: float, grid: tuple[Floats, Floats], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Distance inside the outline in pixels ``[h, w]`` (negative outside) and height of the surface ``[h, w]``.

    The body is cut out by random planes: seen from above, by the sides of a polygon; the planes lean in by different slopes.
    """
    sides = int(rng.integers(5, 10))
    angles = (np.arange(sides) + rng.uniform(-0.38, 0.38, sides)) * (2 * np.pi / sides) + rng.uniform(0, 2 * np.pi)
    stretch, turn = rng.uniform(1.0, 1.7), rng.uniform(0, np.pi)
    along = np.abs(np.cos(angles - turn))
    reach = diameter / 2 * rng.uniform(0.86, 1.06, sides) * np.sqrt(stretch * along**2 + (1 - along**2) / stretch)
    rows, columns = grid
    normals = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)  # [2, sides]
    depth = reach.astype(np.float32)[:, None, None] - normals[0][:, None, None] * columns - normals[1][:, None, None] * rows
    sharp = 10.0 / diameter  # corners are worn over about a tenth of the diameter
    inside = -np.log(np.exp(np.clip(-sharp * depth, -30, 30)).sum(axis=0)) / sharp
    slopes = rng.uniform(0.5, 1.6, sides).astype(np.float32)
    lean = rng.normal(0, 0.22, 2).astype(np.float32)
    top = diameter * rng.uniform(0.16, 0.3) + lean[0] * columns + lean[1] * rows
    height = np.minimum((depth * slopes[:, None, None]).min(axis=0), top)
    return np.asarray(inside, dtype=np.float32), np.asarray(height, dtype=np.float32)


def _paint_rock(canvas: _Canvas, number: int, centre: NDArray[np.float64], diameter: float, rng: np.random.Generator) -> float:
    """Paints one rock over what is there, with its shadow; returns the diameter of the circle of the same outlined area."""
    size = len(canvas.ids)
    half = int(np.ceil(diameter * 0.75)) + 4
    top, left = (int(c) - half for c in centre)
    rows, columns = np.mgrid[0 : 2 * half, 0 : 2 * half].astype(np.float32)
    grid = (rows - np.float32(centre[0] - top), columns - np.float32(centre[1] - left))
    inside, height = _outline(diameter, grid, rng)
    rough = texture(2 * half, 2 * half, rng)
    inside += texture(2 * half, 2 * half, rng, coarse=True) * min(2.0, 0.03 * diameter)
    area = float((inside > 0).sum())
    seen = (slice(max(0, -top), min(2 * half, size - top)), slice(max(0, -left), min(2 * half, size - left)))
    there = (slice(seen[0].start + top, seen[0].stop + top), slice(seen[1].start + left, seen[1].stop + left))
    colour = _shade(height, rough, diameter, canvas, rng)[seen]
    alpha = np.clip(inside + 0.5, 0, 1)[seen][..., None]
    shift = np.rint(-canvas.light[:2] * min(5.0, 1 + 0.08 * diameter)).astype(int)
    cast = np.roll(inside, (int(shift[1]), int(shift[0])), axis=(0, 1))[seen]
    shadow = 0.6 * np.clip(1 + cast / (2 + 0.08 * diameter), 0, 1) ** 2
    below = canvas.colour[there] * (1 - shadow[..., None])
    canvas.colour[there] = below * (1 - alpha) + colour * alpha
    canvas.ids[there][inside[seen] > 0] = number
    return 2 * float(np.sqrt(area / np.pi))


def _shade(height: Floats, rough: Floats, diameter: float, canvas: _Canvas, rng: np.random.Generator) -> Floats:
    """The colour of a rock's surface ``[h, w, 3]``: its own, with grain, under the light."""
    worn = ndimage.uniform_filter(height, 3 if diameter > 12 else 2) + 0.25 * rough
    down, across = np.gradient(worn)
    cosine = (canvas.light[2] - across * canvas.light[0] - down * canvas.light[1]) / np.sqrt(1 + across**2 + down**2)
    brightness = 0.28 + 0.85 * np.clip(cosine, 0, 1) * (1 + 0.09 * rough)
    own = ROCK_COLOURS[rng.choice(len(ROCK_COLOURS), p=[0.32, 0.26, 0.16, 0.12, 0.08, 0.06])]
    own = own * canvas.tint * (rng.uniform(0.8, 1.12) * rng.normal(1, 0.03, 3)).astype(np.float32)
    return np.asarray(brightness[..., None] * own, dtype=np.float32)


def _photograph(colour: Floats, look: OreLook, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Dust in the air, uneven light, the lens and the sensor: ``uint8 [S, S, 3]``."""
    size = len(colour)
    haze = np.float32(look.dust) * (0.05 + 0.3 * smooth(size, 3, rng))[..., None]
    colour = colour * (1 - haze) + np.array([0.62, 0.52, 0.38], dtype=np.float32) * haze
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    fall = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None] + 1.2 * (smooth(size, 2, rng) - 0.5)
    exposure = (rng.uniform(0.9, 1.25) * (1 + look.light * 0.45 * fall)).astype(np.float32)
    colour = colour * exposure[..., None]
    colour[1:] = 0.5 * (colour[1:] + colour[:-1])  # the belt moves while the shutter is open
    noise = rng.standard_normal(colour.shape, dtype=np.float32) * np.float32(0.022)
    return np.asarray(np.clip((colour + noise) * 255, 0, 255), dtype=np.uint8)
