"""Random surfaces that pictures are painted with: rough grain, and slow variation. Everything comes from the generator passed in."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
TILE = 1024


@lru_cache(maxsize=2)
def _tile(coarse: bool) -> Floats:
    """Rough texture ``[TILE, TILE]`` that repeats, mean 0 and deviation 1: fixed noise of some grain sizes, up to 3 or up to 8 pixels."""
    white = np.random.default_rng(0).standard_normal((TILE, TILE)).astype(np.float32)
    mixed = sum(sigma * ndimage.gaussian_filter(white, sigma, mode="wrap") for sigma in ((3.0, 8.0) if coarse else (0.7, 1.5, 3.0)))
    return np.asarray(mixed / np.std(mixed), dtype=np.float32)


def texture(height: int, width: int, rng: np.random.Generator, *, coarse: bool = False) -> Floats:
    """A random part of the tile ``[height, width]``."""
    tile = _tile(coarse)
    if height > TILE or width > TILE:
        return np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width]
    top, left = rng.integers(TILE - height + 1), rng.integers(TILE - width + 1)
    return tile[top : top + height, left : left + width]


@lru_cache(maxsize=16)
def spline(size: int, cells: int) -> Floats:
    """Weights ``[size, cells + 3]`` that interpolate as many values by cubic B-splines: two matrix products make a smooth surface."""
    at = np.arange(size)[:, None] * (cells / size) + 1 - np.arange(cells + 3)
    near = np.abs(at)
    weights = np.where(near < 1, (4 - 6 * near**2 + 3 * near**3) / 6, np.clip(2 - near, 0, None) ** 3 / 6)
    return np.asarray(weights, dtype=np.float32)


def smooth(size: int, cells: int, rng: np.random.Generator) -> Floats:
    """Slow random variation ``[size, size]`` in 0..1, with about ``cells`` hills along a side."""
    weights = spline(size, cells)
    return np.asarray(weights @ rng.random((cells + 3, cells + 3), dtype=np.float32) @ weights.T)


def rgb(red: float, green: float, blue: float) -> Floats:
    """A colour ``[3]``."""
    return np.array([red, green, blue], dtype=np.float32)


def line(size: int, cells: int, rng: np.random.Generator) -> Floats:
    """Slow random variation along a line ``[size]``, in 0..1, with about ``cells`` hills."""
    return np.asarray(spline(size, cells) @ rng.random(cells + 3, dtype=np.float32))


def photograph(colour: Floats, rng: np.random.Generator, *, light: float = 0.25, noise: float = 0.02) -> NDArray[np.uint8]:
    """Colours ``[S, S, 3]`` (or grey ``[S, S]``) in 0..1 under uneven light and with the sensor's noise: ``uint8 [S, S, 3]``."""
    if colour.ndim == 2:
        colour = colour[..., None]
    exposure = rng.uniform(0.9, 1.1) * (1 + light * (2 * smooth(len(colour), 2, rng) - 1))
    seen = colour * exposure[..., None].astype(np.float32) + rng.standard_normal(colour.shape, dtype=np.float32) * np.float32(noise)
    pixels = np.clip(seen * 255, 0, 255).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
