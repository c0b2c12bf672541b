"""Which resolution decides what in an ARSM model: figures 7 and 8 of its paper, and the share of each class's pixels by resolution.

Shapes: ``K`` classes, ``R`` resolutions, ``H`` and ``W`` the size of an image.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from torch import Tensor

from stratum.data.class_table import BACKGROUND
from stratum.inference.classes import find_classes, in_windows, labels_of
from stratum.inference.outputs import to_float
from stratum.report.class_overlays import draw_classes
from stratum.report.class_plots import share_bars
from stratum.report.overlays import contact_sheet
from stratum_models.arsm.config import ARSMConfig
from stratum_models.arsm.model import ARSM, GateMap, decided_shares
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import LoadedModel

CELL = 200  # pixels of a map's longer side


@dataclass(frozen=True, eq=False, kw_only=True)
class GateStudy:
    """What the gate did on some images; filled image by image."""

    model: ARSM
    classes: tuple[str, ...]
    pictures: int  # images whose maps are drawn
    window: int  # side of the windows for larger images, which are refused; 0: all are predicted whole
    decided: Tensor  # int64 [K, R]: the pixels predicted as a class for which a resolution has the largest weight
    sheets: dict[str, tuple[list[Tensor], list[str]]] = field(default_factory=dict)  # pictures and captions by the image's URI

    @torch.inference_mode()
    def add(self, image: Tensor, labels: Tensor, uri: str) -> None:
        """Takes an image ``uint8 [3, H, W]`` and its predicted classes ``[H, W]``. Raises UserError for one in windows."""
        if in_windows((image.shape[1], image.shape[2]), self.window):
            raise UserError(
                f"--gates: {uri} is larger than its windows of {self.window} pixels: "
                f"cut it (evaluate.py does with --tile {self.window}), or look at it whole with --window 0"
            )
        (gate,) = self.model.gate_maps([to_float(image).to(self.model.device)])
        self.decided.add_(gate.decided.cpu())
        if len(self.sheets) < self.pictures:
            self.sheets[uri] = self._drawn(image, labels, gate)

    def record(self) -> dict[str, dict[str, Any]]:
        """For each class the share of its predicted pixels that each resolution decides, and which images were drawn."""
        rows = zip(self.classes, decided_shares(self.decided).tolist(), strict=True)
        shares = {name: dict(zip(self.resolutions, row, strict=True)) for name, row in rows}
        return {"gate_shares": shares, "gate_pictures": {f"gate_{number}.png": uri for number, uri in enumerate(self.sheets)}}

    def draw(self, folder: Path) -> None:
        """``gate_shares.png``, and ``gate_<n>.png`` for each image that was chosen."""
        label = "share of the class's predicted pixels, by the resolution that decides"
        share_bars(decided_shares(self.decided).double().numpy(), self.classes, self.resolutions, folder / "gate_shares.png", label=label)
        for number, (pictures, captions) in enumerate(self.sheets.values()):
            columns = 1 + len(self.resolutions)
            contact_sheet(pictures, folder / f"gate_{number}.png", columns=columns, captions=captions, cell=CELL)

    @property
    def artifacts(self) -> tuple[str, ...]:
        """The files of :meth:`write`."""
        return ("gates/gates.json", "gates/gate_shares.png", *(f"gates/gate_{number}.png" for number in range(len(self.sheets))))

    def write(self, folder: Path) -> None:
        """What :meth:`draw` draws, and the record, in a folder ``gates``."""
        (folder / "gates").mkdir()
        self.draw(folder / "gates")
        (folder / "gates" / "gates.json").write_text(json.dumps(self.record(), indent=2) + "\n")

    @property
    def resolutions(self) -> tuple[str, ...]:
        """Names of the branches, by how much smaller than the image they are."""
        assert isinstance(self.model.config, ARSMConfig)
        first = prod(self.model.config.stem_strides)
        return tuple(f"1/{first * 2**branch}" for branch in range(self.decided.shape[1]))

    def _drawn(self, image: Tensor, labels: Tensor, gate: GateMap) -> tuple[list[Tensor], list[str]]:
        """A row for each class: where it was predicted, then gate times answer at each resolution (dark 0, bright 1)."""
        pictures: list[Tensor] = []
        captions: list[str] = []
        shares = gate.shares.cpu()
        for label, name in enumerate(self.classes):
            alone = torch.where(labels == label, 1, 0)
            pictures.append(draw_classes(image, alone, (BACKGROUND, name)))
            captions.append(f"{name}, as found")
            for branch, resolution in enumerate(self.resolutions):
                pictures.append(_heat(gate.responses[branch, label]))
                captions.append(f"{resolution} decides {shares[label, branch]:.0%}")
        return pictures, captions


def gate_study(model: SegmentationModel, classes: Sequence[str], pictures: int, window: int) -> GateStudy:
    """An empty study. Raises UserError for a model without a gate."""
    if not isinstance(model, ARSM):
        raise UserError("--gates: this package's model has no gate to look at: use one with ARSM, such as hrnet_w18_arsm")
    resolutions = len(model.selecting.trunk.channels)
    decided = torch.zeros(len(classes), resolutions, dtype=torch.int64)
    return GateStudy(model=model, classes=tuple(classes), pictures=pictures, window=window, decided=decided)


def study_gates(loaded: LoadedModel, images: Iterable[tuple[str, Tensor]], pictures: int, window: int) -> GateStudy:
    """The gate on the first images, with their URIs, for which nothing needs to be labelled.

    Raises:
        UserError: the model has no gate, an image is predicted in windows, or there is no image.
    """
    if pictures < 1:
        raise UserError(f"--gates {pictures}: give the number of images to draw, 1 or more")
    study = gate_study(prepare_for_inference(loaded.model), loaded.manifest.classes, pictures, window)
    for uri, image in islice(images, pictures):
        (found,) = find_classes(study.model, [image])
        study.add(image, labels_of(found), uri)
    if not study.sheets:
        raise UserError("--gates: none of the images can be read whole: leave the flag out, or give other images")
    return study


def _heat(values: Tensor) -> Tensor:
    """A map ``[H, W]`` in 0..1 as a picture ``uint8 [3, H, W]``."""
    coloured = colormaps["viridis"](values.cpu().numpy())[..., :3]
    return torch.from_numpy((coloured * 255).round().astype("uint8")).permute(2, 0, 1)
