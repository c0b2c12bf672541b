"""One labelled image, as readers make it and transforms change it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stratum_models.interface import Target


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """An image with its labels and where it came from.

    ``image`` is ``uint8 [3, H, W]`` RGB (grey is repeated); ``target`` has the same ``H`` and ``W``.
    """

    image: Tensor
    target: Target
    uri: str


class Samples(Protocol):
    """Anything that holds samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...
