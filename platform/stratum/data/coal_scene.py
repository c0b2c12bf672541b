"""A coal face: the seam below a roof of rock, a band of neither between them, and pieces of floating coal before it.

The classes are those of the FM-HRNet paper's own set (section 4.1). Shapes: ``S`` side of the picture in pixels.
"""

import numpy as np
from numpy.typing import NDArray

from stratum.data.textures import Floats, line, photograph, rgb, smooth, texture

CLASSES = ("background", "coal", "roof", "floating_coal")
BACKGROUND, COAL, ROOF, FLOATING = range(4)
_GREYS = np.array([0.21, 0.13, 0.42, 0.22], dtype=np.float32)


def draw_coal(size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture ``uint8 [S, S, 3]`` and its classes ``uint8 [S, S]``."""
    labels, depth = _layers(size, rng)
    pieces = _float_coal(size, rng)
    labels[pieces > 0] = FLOATING
    return photograph(_colour(labels, depth, pieces, rng), rng, light=0.5, noise=0.025), labels


def _layers(size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Floats]:
    """Roof, gap and seam from above to below, and how deep a row lies in the tilted strata, in 0..1."""
    rows = np.arange(size, dtype=np.float32)[:, None] / size
    tilt = rng.uniform(-0.25, 0.25) * (np.linspace(-0.5, 0.5, size, dtype=np.float32))
    rough = 0.012 * texture(1, size, rng, coarse=True)[0]
    roof = rng.uniform(0.22, 0.42) + tilt + 0.14 * (line(size, 4, rng) - 0.5) + rough
    gap = 0.02 + rng.uniform(0.02, 0.1) * line(size, 5, rng)
    floor = rng.uniform(0.86, 0.98) - tilt * 0.3 + 0.08 * (line(size, 3, rng) - 0.5)
    labels = np.full((size, size), BACKGROUND, dtype=np.uint8)
    labels[(rows > roof + gap) & (rows < floor)] = COAL
    labels[rows < roof] = ROOF
    return labels, np.asarray(rows - tilt, dtype=np.float32)


def _float_coal(size: int, rng: np.random.Generator) -> Floats:
    """How high the pieces rise ``[S, S]``; 0 where there are none. They lie in a heap that is highest somewhere along the floor."""
    height = np.zeros((size, size), dtype=np.float32)
    middle, reach = rng.uniform(0.1, 0.9), rng.uniform(0.15, 0.5)
    for _ in range(int(rng.integers(6, 26))):
        radius = size * rng.uniform(0.02, 0.075)
        x, y = size * (middle + reach * rng.normal(0, 0.6)), size * (1.0 - abs(rng.normal(0, 0.1)))
        half = int(radius * 1.5) + 2
        top, left = max(int(y) - half, 0), max(int(x) - half, 0)
        inside = (slice(top, min(max(int(y) + half, 0), size)), slice(left, min(max(int(x) + half, 0), size)))
        if inside[0].start >= inside[0].stop or inside[1].start >= inside[1].stop:
            continue  # out of sight
        rows, columns = np.mgrid[inside].astype(np.float32)
        angles = rng.uniform(0, 2 * np.pi) + np.arange(6) * np.pi / 3 + rng.uniform(-0.4, 0.4, 6)
        flat = [(np.cos(a) * (columns - x) + np.sin(a) * (rows - y)) / (radius * rng.uniform(0.7, 1.1)) for a in angles]
        body = (1 - np.max(flat, axis=0)).astype(np.float32)
        height[inside] = np.where(body > 0, np.minimum(body, 0.5) + 0.01, height[inside])
    return height


def _colour(labels: NDArray[np.uint8], depth: Floats, pieces: Floats, rng: np.random.Generator) -> Floats:
    size = len(labels)
    grain, coarse = texture(size, size, rng), texture(size, size, rng, coarse=True)
    strata = np.sin(depth * rng.uniform(60, 140) + 3 * smooth(size, 4, rng))
    glints = np.clip(grain - 1.8, 0, 1)  # faces of coal that mirror the lamp
    down, across = np.gradient(pieces)
    shadow = np.roll(pieces > 0, (3, 2), axis=(0, 1)) & (pieces == 0)
    shine = np.where(pieces > 0, 1.15 + 5 * (across + down), np.where(shadow, 0.55, 1.0))
    grey = _GREYS[labels] * rng.uniform(0.85, 1.15) * (1 + 0.16 * grain + 0.14 * coarse) * shine
    grey = grey * (1 + np.where(labels == ROOF, 0.14, 0.04) * strata)
    grey = grey + 0.5 * glints * ((labels == COAL) | (labels == FLOATING))
    tint = np.where((labels == ROOF)[..., None], rgb(1.06, 1.0, 0.9), rgb(0.96, 1.0, 1.05))
    haze = 0.14 * smooth(size, 3, rng)[..., None]
    return np.asarray(grey[..., None] * tint * (1 - haze) + 0.5 * haze, dtype=np.float32)
