"""Nerve tissue in an electron micrograph: cells packed side by side, their membranes, mitochondria, and tiny synapses on the membranes.

Shapes: ``S`` side of the picture in pixels.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from stratum.data.textures import Floats, photograph, smooth, texture

CLASSES = ("membrane", "mitochondria", "synapse", "intracellular")
MEMBRANE, MITOCHONDRIA, SYNAPSE, INTRACELLULAR = range(4)
_SPACING = 26.0  # pixels between the middles of neighbouring cells, on average


def draw_cells(size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture ``uint8 [S, S, 3]`` and its classes ``uint8 [S, S]``."""
    depth, between = _cells(size, rng)
    labels = np.full((size, size), INTRACELLULAR, dtype=np.uint8)
    organelles = _blobs(size, rng, int(size * size / 4500) + 1, (5.0, 11.0), None)
    labels[(organelles > 0) & (depth > 4)] = MITOCHONDRIA
    labels[depth < 1.8] = MEMBRANE
    synapses = _blobs(size, rng, int(size * size / 16000) + 1, (4.0, 6.5), between)
    labels[(synapses > 0) & (depth < 4.5)] = SYNAPSE
    return photograph(_grey(labels, depth, organelles, rng), rng, light=0.15, noise=0.05), labels


def _cells(size: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """About how far each pixel is from the border of its cell ``[S, S]`` in pixels, and some pixels on borders ``[M, 2]``.

    Cells are the regions nearest to random points, seen through a wavy glass, and of uneven size since the points are.
    """
    margin = 2 * _SPACING
    count = max(int(((size + 2 * margin) / _SPACING) ** 2), 4)
    points = rng.uniform(-margin, size + margin, (count, 2))
    waves = np.stack([14 * (smooth(size, max(size // 22, 2), rng) - 0.5) for _ in range(2)], axis=-1)
    places = np.moveaxis(np.mgrid[:size, :size], 0, -1) + waves
    away, which = cKDTree(points).query(places.reshape(-1, 2), k=2)
    apart = np.linalg.norm(points[which[:, 0]] - points[which[:, 1]], axis=1)
    depth = ((away[:, 1] ** 2 - away[:, 0] ** 2) / (2 * apart)).reshape(size, size).astype(np.float32)  # to the bisector
    return depth, np.argwhere(depth < 0.7)


def _blobs(size: int, rng: np.random.Generator, count: int, radii: tuple[float, float], places: NDArray[np.int64] | None) -> Floats:
    """Ellipses with a height of 1 in their middles, 0 and below outside: anywhere, or at some of the given places."""
    height = np.full((size, size), -1, dtype=np.float32)
    for _ in range(count):
        y, x = rng.uniform(0, size, 2) if places is None or not len(places) else places[rng.integers(len(places))]
        radius, stretch, turn = rng.uniform(*radii), rng.uniform(1.0, 1.7), rng.uniform(0, np.pi)
        half = int(radius * 2) + 1
        inside = tuple(slice(max(int(c) - half, 0), min(int(c) + half + 1, size)) for c in (y, x))
        rows, columns = np.mgrid[inside[0], inside[1]].astype(np.float32)
        along = (np.cos(turn) * (columns - x) + np.sin(turn) * (rows - y)) / (radius * stretch)
        side = (-np.sin(turn) * (columns - x) + np.cos(turn) * (rows - y)) * stretch**0.5 / radius
        height[inside] = np.maximum(height[inside], 1 - along**2 - side**2)
    return height


def _grey(labels: NDArray[np.uint8], depth: Floats, organelles: Floats, rng: np.random.Generator) -> Floats:
    size = len(labels)
    grain = texture(size, size, rng)
    plasma = 0.66 + 0.05 * grain + 0.12 * (smooth(size, max(size // 30, 2), rng) - 0.5)
    folds = 0.42 + 0.09 * np.sin(9 * organelles + 0.35 * np.mgrid[:size, :size][0]) + 0.04 * grain
    grey = np.where(labels == MITOCHONDRIA, folds, plasma)
    grey = np.where(labels == MEMBRANE, 0.27 + 0.1 * depth + 0.03 * grain, grey)
    grey = np.where(labels == SYNAPSE, 0.13 + 0.03 * grain, grey)
    return np.asarray(ndimage.uniform_filter(grey, 2), dtype=np.float32)
