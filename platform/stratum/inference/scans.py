"""The classes of a scan, part by part: what is in memory is one window, however large the image is.

The image is divided into cores; each is predicted with its surroundings, of which nothing is kept. A two-stage model goes over the image
twice: first stage 1 on every window, whose probabilities wait on disk at its own resolution while one score for each patch stays in memory;
then the least sure patches of the whole image are picked, and refined window by window.

Shapes: ``K`` classes, ``H`` and ``W`` the size of the image, ``h`` and ``w`` that of stage 1's output in a window, ``n`` patches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from stratum.data.scans import Scan
from stratum.data.windows import Window, windows
from stratum.disk import require_room
from stratum.inference.classes import TWO_STAGE_WINDOW
from stratum.inference.outputs import to_float
from stratum_models.batching import InputSize
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel, SemanticPrediction
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.model import TwoStage
from stratum_models.two_stage.scaling import at_size, small_size

WINDOW = 1024  # pixels: side of the windows where none was asked for
NO_ROOM = "for what waits on disk: set TMPDIR to a folder that has room"
CONTEXT = 8  # a core is surrounded by one part in so many of the window's side

Keep = Callable[[Window, Tensor | None, Tensor | None], None]
"""Takes the part of a core: the image ``uint8 [3, ., .]`` or the labels ``uint8 [., .]``, each once."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A core and the window around it, in pixels of the image."""

    core: Window
    window: Window

    def inside(self, values: Tensor) -> Tensor:
        """The core's part of what was found in the window ``[..., window.height, window.width]``."""
        top, left = self.core.top - self.window.top, self.core.left - self.window.left
        return values[..., top : top + self.core.height, left : left + self.core.width]


def regions(height: int, width: int, core: int, halo: int) -> Iterator[Region]:
    """Cores of ``core`` pixels that cover the image, row by row; windows reach ``halo`` further where the image does."""
    for top in range(0, height, core):
        for left in range(0, width, core):
            bottom, right = min(top + core, height), min(left + core, width)
            start = max(top - halo, 0), max(left - halo, 0)
            end = min(bottom + halo, height), min(right + halo, width)
            yield Region(
                core=Window(top=top, left=left, height=bottom - top, width=right - left),
                window=Window(top=start[0], left=start[1], height=end[0] - start[0], width=end[1] - start[1]),
            )


def even_regions(height: int, width: int, side: int, halo: int) -> Iterator[Region]:
    """As :func:`regions`, with windows of one size: ``side``, or the image where that is smaller. Cores meet amid the windows' overlap."""
    every = windows(height, width, side, 2 * halo)
    rows = _cores(sorted({one.top for one in every}), every[0].height)
    columns = _cores(sorted({one.left for one in every}), every[0].width)
    for window in every:
        (top, bottom), (left, right) = rows[window.top], columns[window.left]
        yield Region(core=Window(top=top, left=left, height=bottom - top, width=right - left), window=window)


def _cores(starts: Sequence[int], length: int) -> dict[int, tuple[int, int]]:
    """First and last (not included) pixel of the core of each window, by where it begins, of windows ``length`` pixels long."""
    edges = [starts[0], *((after + before + length) // 2 for before, after in pairwise(starts)), starts[-1] + length]
    return dict(zip(starts, pairwise(edges), strict=True))


@torch.inference_mode()
def segment_scan(model: SegmentationModel, scan: Scan, keep: Keep, scratch: Path, window: int = 0) -> int:
    """Hands the image and the class of every pixel to ``keep``, core by core.

    Args:
        model: ready to predict, wherever it is.
        scan: the image.
        keep: takes the parts.
        scratch: an empty folder on disk for stage 1's probabilities: ``4 * K / scale**2`` bytes for each pixel, and edges.
        window: side of the windows in pixels, all of them as large as the image allows; 0: 1024, and 2048 for two stages.

    Returns:
        The number of refined patches; 0 for a model of one stage.

    Raises:
        UserError: the scan is damaged, the model resizes images to one size and no window is given, which would say by how much, or the
            disk of ``scratch`` is too small.
    """
    if isinstance(model, TwoStage):
        return _TwoPasses(model, scan, keep, scratch, window or TWO_STAGE_WINDOW).run()
    config = getattr(model, "config", None)
    if isinstance(config, InputSize) and config.input_short is not None and not window:
        raise UserError(
            f"{scan.uri}: too large to be scaled to {config.input_short} pixels as this package does: give with --window the shorter side "
            "of the images that it was trained on, or train it with --size 0"
        )
    side = window or WINDOW
    for region in even_regions(scan.height, scan.width, side, side // CONTEXT):
        image = scan.read(region.window)
        (found,) = model.predict([to_float(image).to(model.device)])
        probabilities = cast(SemanticPrediction, found).probabilities
        keep(region.core, region.inside(image), None)
        keep(region.core, None, _labels(region.inside(probabilities)))
    return 0


def _labels(probabilities: Tensor) -> Tensor:
    return probabilities.argmax(0).to("cpu", torch.uint8)


class _TwoPasses:
    """A two-stage model on a scan; windows begin at multiples of a patch, so that their patches are those of the whole image."""

    def __init__(self, model: TwoStage, scan: Scan, keep: Keep, scratch: Path, window: int) -> None:
        if model.config.resizes:
            raise UserError(f"{scan.uri}: too large to be scaled as this package does before its two stages: train it with --size 0")
        self._model, self._scan, self._keep, self._scratch = model, scan, keep, scratch
        self._grid = model.config.grid(scan.height, scan.width)
        self._halo, self._core = _cells_of(model.config, window)

    def run(self) -> int:
        """Both passes; the number of refined patches."""
        require_room(self._scratch, self._stage1_bytes(), NO_ROOM)
        scores = torch.zeros(self._grid.rows, self._grid.columns)
        for index, region in enumerate(self._regions()):
            self._look(index, region, scores)
        picked = self._picked(scores)
        for index, region in enumerate(self._regions()):
            labels = self._refined(index, region, picked)
            self._keep(region.core, None, _labels(region.inside(labels)))
        return int(picked.sum())

    def _regions(self) -> Iterator[Region]:
        side = self._model.config.patch
        return regions(self._scan.height, self._scan.width, self._core * side, self._halo * side)

    def _stage1_bytes(self) -> int:
        """What its probabilities take on disk."""
        windows = (region.window for region in self._regions())
        pixels = (math.prod(small_size((one.height, one.width), self._model.config.scale)) for one in windows)
        return 4 * self._model.num_classes * sum(pixels)

    def _look(self, index: int, region: Region, scores: Tensor) -> None:
        """Stage 1 on a window: its probabilities go to disk, the scores of the core's patches into ``scores``."""
        image = self._scan.read(region.window)
        self._keep(region.core, region.inside(image), None)
        (coarse,) = self._model.coarse([to_float(image).to(self._model.device)])
        np.save(self._file(index), coarse.cpu().numpy())
        own = self._model.scores(self._full(coarse, region.window)).cpu()
        rows, columns = self._cells(region.window)
        inner_rows, inner_columns = self._cells(region.core)
        found = own.view(rows.stop - rows.start, columns.stop - columns.start)
        top, left = inner_rows.start - rows.start, inner_columns.start - columns.start
        height, width = inner_rows.stop - inner_rows.start, inner_columns.stop - inner_columns.start
        scores[inner_rows, inner_columns] = found[top : top + height, left : left + width]

    def _picked(self, scores: Tensor) -> Tensor:
        """The patches of the whole image that are refined, bool ``[rows, columns]``."""
        picked = torch.zeros(scores.numel(), dtype=torch.bool)
        if self._model.refines:
            picked[self._model.choose(scores.flatten())] = True
        return picked.view_as(scores)

    def _refined(self, index: int, region: Region, picked: Tensor) -> Tensor:
        """The probabilities ``[K, ., .]`` of a window, right in its core."""
        coarse = torch.from_numpy(np.load(self._file(index))).to(self._model.device)
        self._file(index).unlink()
        probabilities = self._full(coarse, region.window)
        cells = self._reaching(region, picked).to(self._model.device)
        if not len(cells):
            return probabilities
        image = to_float(self._scan.read(region.window)).to(self._model.device)
        refined = self._model.refine(self._model.cut(image, probabilities, cells))
        return self._model.merge(probabilities, refined, cells)

    def _reaching(self, region: Region, picked: Tensor) -> Tensor:
        """The window's own numbers, int64 ``[n]``, of the picked patches that change its core: with blended seams, neighbours too."""
        ring = int(self._model.config.blend and self._model.config.margin > 0)
        rows, columns = self._cells(region.window)
        inner_rows, inner_columns = self._cells(region.core)
        chosen = torch.zeros_like(picked)
        near = (
            slice(max(inner_rows.start - ring, rows.start), min(inner_rows.stop + ring, rows.stop)),
            slice(max(inner_columns.start - ring, columns.start), min(inner_columns.stop + ring, columns.stop)),
        )
        chosen[near] = picked[near]
        return chosen[rows, columns].flatten().nonzero().flatten()

    def _cells(self, window: Window) -> tuple[slice, slice]:
        """The rows and columns of patches that a window holds."""
        side = self._model.config.patch
        return (
            slice(window.top // side, -(-(window.top + window.height) // side)),
            slice(window.left // side, -(-(window.left + window.width) // side)),
        )

    def _full(self, coarse: Tensor, window: Window) -> Tensor:
        return at_size(coarse, window.height, window.width)

    def _file(self, index: int) -> Path:
        return self._scratch / f"{index}.npy"


def _cells_of(config: TwoStageConfig, window: int) -> tuple[int, int]:
    """How many patches wide the surroundings of a core are, and the core itself, one at least.

    The surroundings hold the margins of the core's patches, with blended seams those of their neighbours too.
    """
    reach = config.margin + (config.patch + config.margin) * int(config.blend and config.margin > 0)
    halo = math.ceil(max(window // CONTEXT, reach) / config.patch)
    return halo, max(window // config.patch - 2 * halo, 1)
