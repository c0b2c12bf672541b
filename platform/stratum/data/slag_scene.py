"""A dip tube after it was lowered into the ladle: the slag has left a band of another colour around it.

The thickness of the band is what is measured (slag paper, section 1). Shapes: ``S`` side of the picture in pixels.
"""

import numpy as np
from numpy.typing import NDArray

from stratum.data.textures import Floats, line, photograph, rgb, smooth, texture

CLASSES = ("background", "tube", "slag")
BACKGROUND, TUBE, SLAG = range(3)


def draw_slag(size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture ``uint8 [S, S, 3]`` and its classes ``uint8 [S, S]``."""
    rows, columns = (axis.astype(np.float32) / size for axis in np.mgrid[:size, :size])
    axis = rng.uniform(0.4, 0.6) + rng.uniform(-0.06, 0.06) * rows
    half = rng.uniform(0.2, 0.32) + 0.006 * texture(1, size, rng, coarse=True).T
    across = (columns - axis) / half  # -1 and 1 at the tube's edges
    curve = rng.uniform(0.02, 0.09) * np.sqrt(np.clip(1 - across**2, 0, 1))  # a ring seen from a little above
    end = rng.uniform(0.82, 1.05) + 0.02 * (line(size, 6, rng) - 0.5)
    tube = (np.abs(across) < 1) & (rows < end + curve)
    upper = rng.uniform(0.3, 0.5) + 0.06 * (line(size, 7, rng) - 0.5) + 0.004 * texture(1, size, rng)[0]
    lower = upper + rng.uniform(0.1, 0.28) + 0.08 * (line(size, 6, rng) - 0.5)
    slag = tube & (rows > upper + curve) & (rows < lower + curve)
    labels = np.where(slag, SLAG, np.where(tube, TUBE, BACKGROUND)).astype(np.uint8)
    return photograph(_colour(labels, across, rows - lower - curve, rng), rng, light=0.3, noise=0.022), labels


def _colour(labels: NDArray[np.uint8], across: Floats, below: Floats, rng: np.random.Generator) -> Floats:
    """Dark hall, grey tube that still glows where it was in the steel, and crusted slag."""
    size = len(labels)
    grain, coarse = texture(size, size, rng), texture(size, size, rng, coarse=True)
    round_ = np.sqrt(np.clip(1 - 0.85 * across**2, 0.05, 1))[..., None]
    glow = (rng.uniform(0.2, 0.9) * (0.5 + smooth(size, 4, rng)) * np.clip(1 + below / 0.08, 0, 1))[..., None]
    hall = rgb(0.16, 0.13, 0.12) * (0.5 + 1.3 * smooth(size, 4, rng) + 0.08 * grain)[..., None]
    hall = hall + rgb(0.75, 0.36, 0.12) * (rng.uniform(0.1, 0.7) * np.clip(np.mgrid[:size, :size][0] / size - 0.75, 0, 1) * 3)[..., None]
    tube = (rgb(0.42, 0.38, 0.36) * (1 + 0.09 * grain + 0.06 * coarse)[..., None] + rgb(0.5, 0.17, 0.03) * glow) * round_
    crust = rgb(0.60, 0.47, 0.34) * rng.uniform(0.85, 1.15) * (1 + 0.13 * grain + 0.2 * coarse)[..., None] * round_
    colour = np.where((labels == SLAG)[..., None], crust, np.where((labels == TUBE)[..., None], tube, hall))
    smoke = (rng.uniform(0, 0.35) * smooth(size, 3, rng) ** 2)[..., None]
    return np.asarray(colour * (1 - smoke) + 0.6 * smoke, dtype=np.float32)
