"""Synthetic scenes with class masks as data sets: ``synthetic://coal?images=64&size=256&seed=0``, and slag, cells and vessels alike.

An image depends on the parameters and on its number alone. The last quarter of the images is the validation set.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from stratum.data import cells_scene, coal_scene, slag_scene, vessels_scene
from stratum.data.sample import Sample
from stratum_models.errors import UserError
from stratum_models.interface import SemanticTarget

Draw = Callable[[int, np.random.Generator], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
SCENES: dict[str, tuple[tuple[str, ...], Draw]] = {
    "coal": (coal_scene.CLASSES, coal_scene.draw_coal),
    "slag": (slag_scene.CLASSES, slag_scene.draw_slag),
    "cells": (cells_scene.CLASSES, cells_scene.draw_cells),
    "vessels": (vessels_scene.CLASSES, vessels_scene.draw_vessels),
}
_LIMITS = {"images": (2, 10**6), "size": (32, 4096), "seed": (0, 2**62)}


@dataclass(frozen=True, kw_only=True)
class MaskSceneSpec:
    """What such a scene can be asked for; every field but ``scene`` is a parameter of the URI."""

    scene: str
    images: int = 64
    size: int = 256  # side of the images in pixels
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"synthetic://{self.scene}: {name}={getattr(self, name)} is outside {low}..{high}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return SCENES[self.scene][0]

    @property
    def uri(self) -> str:
        """The URI that gives this specification, with every parameter that is not the default."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return f"synthetic://{self.scene}" + ("?" + "&".join(changed) if changed else "")


class MaskSceneSet(Dataset[Sample]):
    """Some images of a specification, drawn when asked for."""

    def __init__(self, spec: MaskSceneSpec, numbers: range) -> None:
        self.spec = spec
        self.numbers = numbers
        self.uris = [f"{spec.uri}#{number}" for number in numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        return draw_masked(self.spec, self.numbers[index])


def draw_masked(spec: MaskSceneSpec, number: int) -> Sample:
    """One image of a specification with its class mask."""
    pixels, labels = SCENES[spec.scene][1](spec.size, np.random.default_rng([spec.seed, number]))
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return Sample(image=image, target=SemanticTarget(mask=torch.from_numpy(labels).long()), uri=f"{spec.uri}#{number}")
