"""One labelled image, as readers make it and transforms change it."""

from dataclasses import dataclass

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
