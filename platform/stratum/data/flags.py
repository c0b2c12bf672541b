"""The flags of every job that reads labelled images, so that the same words give the same images to check, to train on and to measure."""

from dataclasses import dataclass
from typing import Literal

from stratum.data.source import DataSpec


@dataclass(frozen=True, kw_only=True)
class DataArgs:
    """Which labelled images, how they are read, and which of them are held out."""

    data: str
    """A folder or COCO JSON, local or s3://, or synthetic://ore?images=64&size=256&seed=0, likewise coal, slag, cells and vessels."""
    classes: str = ""
    """Categories to use and merge, such as roca+glomero=ore."""
    task: Literal["", "instance", "semantic"] = ""
    """Only for labels that can be read as both: COCO, and folders of masks whose values nothing names. Instances, where it is not said."""
    val_fraction: float = 0.2
    """How much is held out where the data have no validation part of their own."""
    split_seed: int = 0
    """Seed of that split, and of the folds."""
    folds: int = 0
    """Cross-validation: all images are dealt into so many folds, and the one that --fold names is held out; 0: none."""
    fold: int = 0
    """The fold that is held out, counted from 0."""
    tile: int = 0
    """Cut images into tiles with sides of at most so many pixels, without overlap; 0: images stay whole."""

    def data_spec(self, *, classes: str = "", skip_broken: bool = False) -> DataSpec:
        """The data that the flags describe; ``classes`` are those where the flags name none.

        Raises:
            UserError: the flags do not fit together.
        """
        return DataSpec(
            uri=self.data,
            classes=self.classes or classes,
            task=self.task,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            folds=self.folds,
            fold=self.fold,
            tile=self.tile,
            skip_broken=skip_broken,
        )
