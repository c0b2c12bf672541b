"""A fundus picture: vessels that leave the optic disc, branch and thin out, in a round field of view.

Shapes: ``S`` side of the picture in pixels.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stratum.data.textures import Floats, photograph, rgb, smooth, texture

CLASSES = ("background", "vessel")
_STEP = 2.0  # pixels that a vessel grows between two bends
_THIN = 0.45  # half the width in pixels at which a vessel ends


def draw_vessels(size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture ``uint8 [S, S, 3]`` and its classes ``uint8 [S, S]``; vessels end with the field of view."""
    disc = np.array([rng.uniform(0.42, 0.58), rng.choice([0.22, 0.78]) + rng.uniform(-0.04, 0.04)]) * size
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    view = np.hypot(rows - size / 2, columns - size / 2) < 0.48 * size
    depth = _paint(size, *_grow(size, disc, rng))
    labels = ((depth > 0) & view).astype(np.uint8)
    colour = _colour(labels, depth, np.hypot(rows - disc[0], columns - disc[1]) / size, rng)
    return photograph(colour * view[..., None], rng, light=0.3, noise=0.015), labels


def _grow(size: int, disc: NDArray[np.float64], rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points ``[M, 2]`` along all vessels, and half the width of the vessel at each ``[M]``. All tips grow a step at a time."""
    tips = int(rng.integers(5, 9))
    at = np.repeat(disc[None], tips, axis=0)
    heading = rng.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(tips) + rng.uniform(-0.3, 0.3, tips)) / tips
    half, bend = rng.uniform(0.006, 0.011, tips) * size + 0.6, np.zeros(tips)
    points, widths = [], []
    for _ in range(int(1.1 * size / _STEP)):
        bend = 0.85 * bend + rng.normal(0, 0.022, len(at))
        heading = heading + bend
        at = at + _STEP * np.stack([np.sin(heading), np.cos(heading)], axis=1)
        half = half * (1 - 0.6 / size)
        points.append(at)
        widths.append(half)
        forks = rng.random(len(at)) < 4.0 / size
        turn, share = rng.uniform(0.3, 0.9, len(at)) * rng.choice([-1, 1], len(at)), rng.uniform(0.6, 0.85, len(at))
        at, bend = np.concatenate([at, at[forks]]), np.concatenate([bend, bend[forks]])
        heading = np.concatenate([heading - 0.3 * turn * forks, (heading + turn)[forks]])
        half = np.concatenate([half * np.where(forks, 0.92, 1), (half * share)[forks]])
        alive = (half > _THIN) & (at > -9).all(axis=1) & (at < size + 9).all(axis=1)
        at, heading, bend, half = at[alive], heading[alive], bend[alive], half[alive]
    return np.concatenate(points), np.concatenate(widths)


def _paint(size: int, points: NDArray[np.float64], widths: NDArray[np.float64]) -> Floats:
    """How deep each pixel lies inside the nearest vessel ``[S, S]``, in pixels; 0 and below is outside.

    The exact distance is taken to the pixels that the vessels pass, each with the width that the vessel has there.
    """
    own = np.zeros((size, size), dtype=np.float32)
    middle = (points[:-1] + points[1:]) / 2
    near = np.abs(points[:-1] - points[1:]).max(axis=1) < 1.5 * _STEP
    places = np.rint(np.concatenate([points, middle[near]])).astype(int)
    radii = np.concatenate([widths, widths[:-1][near]])
    inside = ((places >= 0) & (places < size)).all(axis=1)
    np.maximum.at(own, (places[inside, 0], places[inside, 1]), radii[inside].astype(np.float32))
    distance, (rows, columns) = ndimage.distance_transform_edt(own == 0, return_indices=True)
    return np.asarray(own[rows, columns] + 0.5 - distance, dtype=np.float32)


def _colour(labels: NDArray[np.uint8], depth: Floats, from_disc: Floats, rng: np.random.Generator) -> Floats:
    size = len(labels)
    grain = texture(size, size, rng, coarse=True)
    tissue = rgb(0.72, 0.36, 0.17) * (0.85 + 0.3 * smooth(size, 4, rng) + 0.02 * grain)[..., None]
    bright = np.clip((0.085 - from_disc) * 40, 0, 1)[..., None].astype(np.float32)
    tissue = tissue * (1 - bright) + rgb(0.98, 0.82, 0.5) * bright
    share = (np.clip(depth, 0, 1) * rng.uniform(0.4, 0.65))[..., None] * (labels > 0)[..., None]
    colour = tissue * (1 - share) + rgb(0.42, 0.1, 0.06) * share
    return np.asarray(ndimage.uniform_filter(colour, (2, 2, 1)), dtype=np.float32)
