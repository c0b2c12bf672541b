"""What the paper says in numbers (Teixeira e Silva, Cruz, Gonçalves: *Preliminary Study on Deep Iterative Semantic Segmentation*).

Table 1 and the training of section 4. Its results, Dice and operations over the number of patches, are drawn in figures 3 and 4 only, and
so are the patch sizes and the factors of down-scaling.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PaperData:
    """A row of Table 1."""

    name: str
    images: int
    average_size: tuple[int, int]  # height and width in pixels
    side: int  # all images are resized to this many pixels square
    foreground_percent: float


DATA: tuple[PaperData, ...] = (
    PaperData(name="PH2", images=200, average_size=(575, 766), side=768, foreground_percent=31.4),
    PaperData(name="RETINA", images=66, average_size=(745, 782), side=768, foreground_percent=7.3),
    PaperData(name="KITTI", images=200, average_size=(375, 1271), side=512, foreground_percent=6.6),
)


@dataclass(frozen=True, kw_only=True)
class PaperTraining:
    """Section 4: how both stages were trained."""

    train_percent: int = 70
    stage1_epochs: int = 200
    stage2_epochs: int = 1000
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-4
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    flip_probability: float = 0.5
    brightness: float = 0.1  # and contrast: at most so much up or down, with probability 0.5
    rotation_degrees: float = 180.0  # at most so much either way, with probability 0.5; not for KITTI


TRAINING = PaperTraining()
