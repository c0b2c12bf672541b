"""The pipeline (figure 2): label the image small, look again at the patches that are least sure, put both together.

The steps are methods of their own, each a function of tensors, so that they can run in different places: ``coarse``, ``pick``, ``cut`` and
``refine``; what puts the results together is :func:`stratum_models.two_stage.patches.merge`.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image, ``h`` and ``w`` that of the scaled-down one, ``n`` patches, ``S`` the side of a
patch with its margin, ``C`` the channels that stage 2 sees: 3, or 3 + ``K`` with the prior.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from stratum_models.batching import RESIZING, resize_images
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, Prediction, SegmentationModel, SemanticPrediction, SemanticTarget, Target
from stratum_models.semantic.model import SemanticModel, mask_of
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.patches import crop, merge
from stratum_models.two_stage.pick import choose, choose_for_training, how_many, patch_scores, uncertainty
from stratum_models.two_stage.prior import COLOURS
from stratum_models.two_stage.scaling import at_size, shrunk, shrunk_mask
from stratum_models.two_stage.timing import Stopwatch, Timed, untimed

STEPS = ("scale", "stage1", "pick", "crop", "stage2", "merge")
PROBE_SIDE = 64  # pixels of the patch that shows at construction whether stage 2 works


class TwoStage(SegmentationModel):
    """Two semantic models, the second for the parts of an image that the first is unsure of.

    Args:
        stage1: labels scaled-down images.
        stage2: labels patches at full resolution; widened by ``K`` channels where ``config.prior`` is set.
        config: how patches are chosen, cut out and put back, and how both are trained.

    Raises:
        UserError: the stages have different classes, or stage 2 does not label the patches that it gets pixel by pixel.
    """

    task = "semantic"
    refines: Tensor

    def __init__(self, stage1: SemanticModel, stage2: SemanticModel, config: TwoStageConfig) -> None:
        super().__init__()
        if stage1.num_classes != stage2.num_classes:
            raise UserError(f"stage 1 has {stage1.num_classes} classes and stage 2 has {stage2.num_classes}: they must have the same")
        for name, stage in (("stage1", stage1), ("stage2", stage2)):
            for option in RESIZING:
                if (value := getattr(stage.config, option)) is not None:
                    raise UserError(f"{name}: its option {option}={value} changes the resolution; it must be none")
        self.num_classes = stage1.num_classes
        self.config = config
        self.stage1, self.stage2 = stage1, stage2
        self.progress: float | None = None
        self.register_buffer("refines", torch.tensor(True))  # kept with the weights: in the first part of training stage 2 knows nothing
        self._require_pixelwise()

    def _require_pixelwise(self) -> None:
        channels = COLOURS + self.num_classes * self.config.prior
        wanted = (1, self.num_classes, PROBE_SIDE, PROBE_SIDE)
        try:
            with evaluating(self.stage2), torch.no_grad():
                found = tuple(self.stage2.dense(torch.zeros(1, channels, PROBE_SIDE, PROBE_SIDE, device=self.device)).shape)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"stage 2 cannot label patches of {channels} channels ({reason}): choose another stage2") from error
        if found != wanted:
            raise UserError(
                f"stage 2 changes the resolution: patches of {PROBE_SIDE}x{PROBE_SIDE} give {found}, not {wanted}; choose another"
            )

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Weights, and activations with them, of both stages."""
        super().lay_out(memory_format)
        self.stage1.lay_out(memory_format)
        self.stage2.lay_out(memory_format)

    def set_progress(self, fraction: float) -> None:
        """Hears how much of training is done: stage 1 learns first, and alone is what predicts until stage 2 has learnt from a batch."""
        share = self.config.stage1_share
        self.progress = fraction
        if fraction <= share:
            self.refines.fill_(False)
        self.stage1.set_progress(min(fraction / share, 1.0) if share else 1.0)
        self.stage2.set_progress(max(fraction - share, 0.0) / (1 - share) if share < 1 else 0.0)

    @property
    def unlearnt(self) -> str:
        """Stage 2, until it learns."""
        return "" if self.refines or self.config.stage1_share == 1 else "stage 2"

    @property
    def exportable(self) -> dict[str, SegmentationModel]:
        """Both stages; what lies between them depends on the image."""
        return {"stage1": self.stage1, "stage2": self.stage2}

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The terms of the stage that is learning, named ``stage1_...`` and ``stage2_...``; of both where no progress was told."""
        terms: dict[str, Tensor] = {}
        share = self.config.stage1_share
        alone = self.progress is not None and (self.progress < share or share == 1)
        frozen = self.progress is not None and not alone and self.config.freeze_stage1
        self.stage1.train(self.training and not frozen)
        masks = [mask_of(target) for target in targets]
        small = [shrunk(image, self.config.scale) for image in images]
        if not frozen:
            found = self.stage1.loss(small, [SemanticTarget(mask=shrunk_mask(mask, self.config.scale)) for mask in masks])
            terms |= {f"stage1_{name}": term for name, term in found.items()}
        if not alone:  # behind stage 1's loss: weights that autocast casts without gradient first would get none afterwards
            found = self.stage2.loss(*self._lesson(images, small, masks))
            terms |= {f"stage2_{name}": term for name, term in found.items()}
            self.refines.fill_(True)
        return terms

    @torch.no_grad()
    def _lesson(
        self, images: Sequence[Tensor], small: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[SemanticTarget]]:
        """Patches of all images for stage 2 to learn from, ``[C, S, S]`` each, and their masks."""
        patches: list[Tensor] = []
        labels: list[SemanticTarget] = []
        with evaluating(self.stage1):
            coarse = self._label_small(small)
        for image, found, mask in zip(images, coarse, masks, strict=True):
            probabilities = at_size(found, *image.shape[-2:])
            cells = choose_for_training(
                self.scores(probabilities), self.config.train_patches, random=self.config.train_random, easy=self.config.train_easy
            )
            patches += self.cut(image, probabilities, cells).unbind()
            cut = crop(mask[None], self.config.grid(*mask.shape), cells, fill=IGNORE_INDEX)
            labels += [SemanticTarget(mask=one[0]) for one in cut.unbind()]
        return patches, labels

    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        """Probabilities of each image at its own size."""
        return self._predict(images, untimed)

    def predict_timed(
        self, images: Sequence[Tensor], now: Callable[[], float] = time.perf_counter
    ) -> tuple[Sequence[Prediction], dict[str, float]]:
        """As :meth:`predict`, and the seconds that each of ``STEPS`` took by the clock ``now``; steps not reached are left out."""
        watch = Stopwatch(self.device, now)
        return self._predict(images, watch), watch.seconds

    @torch.no_grad()
    def _predict(self, images: Sequence[Tensor], timed: Timed) -> Sequence[Prediction]:
        resized = resize_images([image.to(self.device) for image in images], self.config)
        return [
            SemanticPrediction(probabilities=at_size(found, *image.shape[-2:]), refined=refined)
            for (found, refined), image in zip(self._run(resized, timed), images, strict=True)
        ]

    def _run(self, images: Sequence[Tensor], timed: Timed) -> list[tuple[Tensor, int]]:
        """Images to their probabilities ``[K, H, W]`` and the number of refined patches, with the steps of all images together."""
        with timed("scale"):
            small = [shrunk(image, self.config.scale) for image in images]
        with timed("stage1"):
            found = self._label_small(small)
        with timed("scale"):
            coarse = [at_size(one, *image.shape[-2:]) for one, image in zip(found, images, strict=True)]
        if not (self.refines.is_meta or self.refines):  # on the meta device, where costs are counted, stage 2 counts
            return [(one, 0) for one in coarse]
        with timed("pick"):
            picked = [self.pick(probabilities) for probabilities in coarse]
        with timed("crop"):
            patches = torch.cat([self.cut(*parts) for parts in zip(images, coarse, picked, strict=True)])
        with timed("stage2"):
            refined = torch.split(self.refine(patches), [len(cells) for cells in picked])
        with timed("merge"):
            return [(self.merge(*parts), len(parts[-1])) for parts in zip(coarse, refined, picked, strict=True)]

    def coarse(self, images: Sequence[Tensor]) -> list[Tensor]:
        """What stage 1 says of images ``[3, H, W]``, at its own resolution: ``[K, h, w]``."""
        return self._label_small([shrunk(image, self.config.scale) for image in images])

    def _label_small(self, small: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for prediction in self.stage1.predict(small):
            assert isinstance(prediction, SemanticPrediction)
            found.append(prediction.probabilities)
        return found

    def scores(self, probabilities: Tensor) -> Tensor:
        """How unsure each patch of ``[K, H, W]`` is, 0..1, row by row."""
        unsure = uncertainty(probabilities, self.config.uncertainty)
        return patch_scores(unsure, self.config.grid(*probabilities.shape[-2:]), self.config.reduction)

    def pick(self, probabilities: Tensor) -> Tensor:
        """The patches of ``[K, H, W]`` to refine, int64 ``[n]``."""
        return self.choose(self.scores(probabilities))

    def choose(self, scores: Tensor) -> Tensor:
        """The patches to refine, int64 ``[n]``, by the scores of all patches of an image."""
        config = self.config
        number = how_many(scores, config.pick, count=config.count, share=config.share, threshold=config.threshold, cap=config.cap)
        return choose(scores, number)

    def cut(self, image: Tensor, probabilities: Tensor, cells: Tensor) -> Tensor:
        """Patches of ``[3, H, W]`` with their margin, stage 1's ``[K, H, W]`` behind the colours where that is asked: ``[n, C, S, S]``."""
        grid = self.config.grid(*image.shape[-2:])
        patches = crop(image, grid, cells)
        return torch.cat([patches, crop(probabilities, grid, cells)], 1) if self.config.prior else patches

    @torch.no_grad()
    def refine(self, patches: Tensor) -> Tensor:
        """What stage 2 says of patches ``[n, C, S, S]``: ``[n, K, S, S]``, not more than ``patch_batch`` of them at once."""
        height, width = patches.shape[-2:]
        found = [patches.new_empty(0, self.num_classes, height, width)]
        for part in torch.split(patches, self.config.patch_batch) if len(patches) else ():
            logits = self.stage2.dense(self.stage2.normalize.uniform(part, self.memory_format))
            found.append(logits[..., :height, :width].float().softmax(1))
        return torch.cat(found)

    def merge(self, probabilities: Tensor, refined: Tensor, cells: Tensor) -> Tensor:
        """Stage 1's ``[K, H, W]`` with the refined patches ``[n, K, S, S]`` put in."""
        grid = self.config.grid(*probabilities.shape[-2:])
        return merge(probabilities, refined, grid, cells, blend=self.config.blend)


@contextmanager
def evaluating(model: SegmentationModel) -> Iterator[None]:
    """The context in which a model is in evaluation mode."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
