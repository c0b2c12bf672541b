"""Augmentation that puts several labelled images together: mosaic and copy-paste.

A picture depends on seed, epoch and index alone, never on the worker that makes it or on what it made before: a run that was resumed
sees what it would have seen.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from stratum.data.sample import Sample, Samples
from stratum.data.scene import Scene, pixel_counts, to_scene
from stratum.data.transforms import AugmentSpec, finish, frame, window

KEPT_BYTES = 256 * 2**20  # of images and id maps in a process


class AugmentedSet(Dataset[Sample]):
    """Augmented samples of a set: as many, each from the image with the same index and, in mosaic and copy-paste, from others.

    ``sample_set`` must give the same sample for the same index whenever it is asked.
    """

    def __init__(self, sample_set: Samples, spec: AugmentSpec, seed: int = 0) -> None:
        self.sample_set = sample_set
        self.spec = spec
        self.seed = seed
        self._epoch = 0
        self._mosaic = True
        self._kept: dict[int, Scene] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.sample_set)

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, self._epoch, self._mosaic)

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Draw afresh from now on; ``mosaic=False`` leaves mosaic and copy-paste out, as detectors do in their last epochs.

        A loader with workers carries the epoch to them by itself: see ``Loader.set_epoch``.
        """
        self._epoch = epoch
        self._mosaic = mosaic

    def draw(self, index: int, epoch: int, mosaic: bool = True) -> Sample:
        """The sample that this index has in this epoch."""
        rng = np.random.default_rng([self.seed, epoch, index])
        with_mosaic, with_paste = (mosaic and rng.random() < share for share in (self.spec.mosaic, self.spec.copy_paste))
        scene = self._mosaic_of(index, rng) if with_mosaic else frame(self._scene(index), self.spec, rng)
        if with_paste and not scene.semantic:
            other = frame(self._scene(self._any(rng)), self.spec, rng, size=scene.size)
            scene = paste(scene, other, rng, spec=self.spec)
        return finish(scene, self.spec, rng)

    def _scene(self, index: int) -> Scene:
        """The image with its map of ids, kept while there is room: reading it costs more than augmenting it."""
        scene = self._kept.get(index)
        if scene is None:
            scene = to_scene(self.sample_set[index])
            self._room -= scene.image.numel() + 2 * scene.ids.numel()
            if self._room >= 0:
                self._kept[index] = scene
        return scene

    def __getstate__(self) -> dict[str, Any]:
        """Without what was kept: each worker keeps its own."""
        return {**self.__dict__, "_kept": {}, "_room": KEPT_BYTES}

    def _any(self, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self.sample_set)))

    def _mosaic_of(self, index: int, rng: np.random.Generator) -> Scene:
        """This image and three others around a random centre, cut to the spec's ``crop``."""
        side = self.spec.mosaic_side
        assert side is not None  # checked by AugmentSpec
        row, column = (int(c) for c in rng.integers(side // 4, side - side // 4 + 1, size=2))
        indices = rng.permutation([index, *(self._any(rng) for _ in range(3))]).tolist()
        sizes = [(h, w) for h in (row, side - row) for w in (column, side - column)]
        tiles = [frame(self._scene(i), self.spec, rng, size=size) for i, size in zip(indices, sizes, strict=True)]
        scene = replace(join(tiles), uri=self._scene(index).uri)
        crop = self.spec.crop
        return scene if crop in (None, side) else window(scene, 1.0, (crop, crop), self.spec, rng)


def join(tiles: Sequence[Scene]) -> Scene:
    """Four scenes as one: top left, top right, bottom left, bottom right. Their sizes must fit together."""
    offsets = np.cumsum([0, *(len(tile.labels) for tile in tiles)])
    depth = max(len(tile.ids) for tile in tiles)
    maps = [_deepened(_shifted(tile, int(offset)), depth) for tile, offset in zip(tiles, offsets, strict=False)]
    return replace(
        tiles[0],
        image=tv_tensors.Image(_quarters([tile.image.as_subclass(torch.Tensor) for tile in tiles])),
        ids=tv_tensors.Mask(_quarters(maps)),
        labels=np.concatenate([tile.labels for tile in tiles]),
        crowd=np.concatenate([tile.crowd for tile in tiles]),
        areas=np.concatenate([tile.areas for tile in tiles]),
    )


def paste(scene: Scene, other: Scene, rng: np.random.Generator, *, spec: AugmentSpec) -> Scene:
    """About half of the instances of ``other`` on top of ``scene``, of the same size; what they cover is cut from the masks below.

    Simple Copy-Paste (Ghiasi et al. 2021) without blending. Crowd regions and what the frame cut below ``spec``'s limits are not pasted.
    """
    layers = other.ids.as_subclass(torch.Tensor).numpy()
    counts = pixel_counts(other)
    whole = (counts >= max(spec.min_area, 1)) & (counts >= max(spec.min_visible, 0.5) * other.areas)
    chosen = whole & ~other.crowd & (rng.random(len(other.labels)) < 0.5)
    if not chosen.any():
        return scene
    pasted = np.where(np.concatenate([[False], chosen])[layers], layers, 0)  # [L', H, W]
    covered = torch.from_numpy(pasted.any(axis=0))
    below = scene.ids.as_subclass(torch.Tensor).masked_fill(covered, 0)
    above = _shifted(replace(other, ids=torch.from_numpy(pasted.astype(np.int16))), len(scene.labels))
    depth = max(len(below), len(above))
    return replace(
        scene,
        image=tv_tensors.wrap(torch.where(covered, other.image, scene.image), like=scene.image),
        ids=tv_tensors.wrap(_deepened(below, depth) + _deepened(above, depth), like=scene.ids),
        labels=np.concatenate([scene.labels, other.labels]),
        crowd=np.concatenate([scene.crowd, other.crowd]),
        areas=np.concatenate([scene.areas, other.areas]),
    )


def _shifted(scene: Scene, offset: int) -> torch.Tensor:
    """Its ids, counted on from ``offset``; classes of a semantic mask are left alone."""
    ids: torch.Tensor = scene.ids.as_subclass(torch.Tensor)
    return ids if scene.semantic or offset == 0 else torch.where(ids > 0, ids + offset, ids)


def _deepened(ids: torch.Tensor, depth: int) -> torch.Tensor:
    """The same ids with empty layers below, so that there are ``depth``."""
    missing = depth - len(ids)
    return ids if missing == 0 else torch.cat([ids, ids.new_zeros(missing, *ids.shape[1:])])


def _quarters(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.cat(list(parts[:2]), dim=-1), torch.cat(list(parts[2:]), dim=-1)], dim=-2)
