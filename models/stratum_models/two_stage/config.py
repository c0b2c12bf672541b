"""What can be chosen in the two-stage pipeline; the defaults are the paper's where it says what they are."""

from dataclasses import dataclass
from typing import get_args

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig
from stratum_models.two_stage.patches import Grid, check_patch
from stratum_models.two_stage.pick import Reduction, Rule, Uncertainty
from stratum_models.two_stage.stage import parse_stage
from stratum_models.two_stage.unet import PAPER_LOSS

LARGEST_PATCH = 4096
PICKING = (
    "patch",
    "margin",
    "blend",
    "pick",
    "count",
    "share",
    "threshold",
    "cap",
    "uncertainty",
    "reduction",
)  # options of what is refined


@dataclass(frozen=True, kw_only=True)
class TwoStageConfig(SemanticConfig):
    """Two models of the catalog, and how patches go from one to the other.

    Raises:
        UserError: a value is outside its range, or ``image_size`` does not hold what is asked.
    """

    loss: str = PAPER_LOSS
    """Of both stages; as ``class_weights`` and ``aux_weight``, one that a stage names among its own options goes before it."""
    stage1: str = "unet_s2"
    """What labels the scaled-down image: a semantic model of the catalog, with options behind a colon, such as
    ``fm_hrnet_v4:stem_strides=2,2,2,1,channels=32``."""
    stage2: str = "unet_s2"
    """What labels patches at full resolution; as ``stage1``."""
    scale: float = 4.0
    """How many times smaller stage 1 sees the image."""
    patch: int = 96
    """Side of a patch in pixels."""
    margin: int = 0
    """Pixels around a patch that stage 2 sees too."""
    blend: bool = False
    """Whether seams are blended over the margin, or hard."""
    prior: bool = False
    """Whether stage 2 sees the probabilities of stage 1, as further channels."""
    pick: Rule = "count"
    """``count`` refines ``count`` patches of each image, ``share`` a share of them, ``threshold`` those with too low a confidence."""
    count: int = 16
    """Patches of ``pick=count``; images with fewer have all of them refined."""
    share: float = 0.25
    """Of the patches, for ``pick=share``."""
    threshold: float = 0.8
    """``pick=threshold`` refines patches whose confidence, 1 minus their uncertainty, is below this."""
    cap: int | None = None
    """No more patches of an image than these, whatever ``pick`` says; None for no cap."""
    uncertainty: Uncertainty = "distance"
    """``entropy``, ``margin`` between the two most probable classes, or ``distance`` from 0.5."""
    reduction: Reduction = "mean"
    """Of the pixels' uncertainties over a patch: ``mean`` or ``max``."""
    patch_batch: int = 64
    """Patches that go through stage 2 at once in prediction; bounds its memory."""
    train_patches: int = 16
    """Patches of each image that stage 2 learns from."""
    train_random: float = 0.25
    """Share of them that is drawn at random from those that are neither the least sure nor the surest."""
    train_easy: float = 0.125
    """Share of them that is the surest."""
    stage1_share: float = 1 / 6
    """Share of training in which stage 1 learns alone; the paper has 200 epochs of it before 1000 of stage 2."""
    freeze_stage1: bool = True
    """Whether stage 1 stays as it is while stage 2 learns."""
    image_size: tuple[int, ...] = ()
    """Height and width of the images that are expected, where they are known: then a patch larger than they are, or more patches than
    they hold, is an error. Images of any other size work all the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stage1", "stage2"):
            parse_stage(name, getattr(self, name))
        self._check_words()
        self._check_ranges()
        if self.margin > self.patch:
            raise UserError(f"option margin={self.margin}: must be no more than the patch of {self.patch} pixels")
        if self.train_random + self.train_easy > 1:
            raise UserError(f"options train_random={self.train_random} and train_easy={self.train_easy}: must be 1 or less together")
        if self.image_size:
            self.check_images(self.image_size)

    def _check_words(self) -> None:
        for name, kind in (("pick", Rule), ("uncertainty", Uncertainty), ("reduction", Reduction)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"option {name}={getattr(self, name)!r}: must be one of {', '.join(get_args(kind))}")

    def _check_ranges(self) -> None:
        for name, least, most in (
            ("scale", 1, 64),
            ("patch", 8, LARGEST_PATCH),
            ("margin", 0, LARGEST_PATCH),
            ("count", 0, None),
            ("share", 0, 1),
            ("threshold", 0, 1),
            ("cap", 0, None),
            ("patch_batch", 1, None),
            ("train_patches", 1, None),
            ("train_random", 0, 1),
            ("train_easy", 0, 1),
            ("stage1_share", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not (least <= value and (most is None or value <= most)):
                raise UserError(f"option {name}={value}: must be {least} or more" + (f", and {most} or less" if most is not None else ""))

    def grid(self, height: int, width: int) -> Grid:
        """The patches of an image."""
        return Grid(height=height, width=width, side=self.patch, margin=self.margin)

    def check_images(self, size: tuple[int, ...]) -> None:
        """Raises UserError where images of ``(height, width)`` are smaller than a patch, or hold fewer patches than ``count``."""
        height, width = check_patch(self.patch, size)
        held = len(self.grid(height, width))
        if self.pick == "count" and self.count > held:
            raise UserError(
                f"option count={self.count}: images of {height}x{width} hold {held} patches of {self.patch} pixels; ask for fewer"
            )
