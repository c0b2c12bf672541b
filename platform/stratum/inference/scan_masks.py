"""What is written of a scan: a tiled mask, a small overlay, and the areas of its classes."""

import tempfile
import time
from pathlib import Path

import numpy as np
from torch import Tensor

from stratum import storage
from stratum.data.images import DepthRule
from stratum.data.label_store import LabelStore
from stratum.data.scans import open_scan
from stratum.data.windows import Window
from stratum.disk import said_when_full
from stratum.inference.outputs import jpeg
from stratum.inference.scans import NO_ROOM, segment_scan
from stratum.inference.work import BatchSpec, Found, Work
from stratum.report.class_overlays import draw_classes
from stratum.report.overview import Overview
from stratum.slag import ClassArea
from stratum.training.progress import Say, say_nothing
from stratum_models.interface import SegmentationModel
from stratum_models.package import Manifest
from stratum_models.two_stage.model import TwoStage

OVERVIEW = 2048  # pixels of the overlay's longer side
SAY_SECONDS = 10.0
FEW = 0.05  # share of a scan's patches that is so small that it is worth a word


class ScanWriter:
    """Predicts scans in an actor; of each it writes a mask of class indices, ``masks/NAME.tif`` or ``.zarr``, and an overlay.

    Masks grow on the disk for temporary files, and are copied when they are whole.
    """

    def __init__(self, spec: BatchSpec, manifest: Manifest, depth: DepthRule | None) -> None:
        self._spec, self._classes, self._depth = spec, manifest.classes, depth

    def find(self, model: SegmentationModel, work: Work, say: Say = say_nothing) -> Found:
        """What is in a scan; ``say`` hears how far it is. Raises UserError where it cannot be read, or there is no room on disk."""
        with (
            open_scan(work.uri, self._depth) as scan,
            tempfile.TemporaryDirectory(prefix="stratum-scan-") as folder,
            said_when_full(Path(folder), NO_ROOM),
        ):
            store = LabelStore(Path(folder) / "mask.zarr", scan.height, scan.width)
            overview = Overview(scan.height, scan.width, OVERVIEW)
            counts = np.zeros(len(self._classes), dtype=np.int64)
            progress = _Progress(work.name, 2 * scan.height * scan.width, say)

            def keep(window: Window, image: Tensor | None, labels: Tensor | None) -> None:
                progress.add(window.height * window.width * ((image is not None) + (labels is not None)))
                if image is not None and self._spec.overlays:
                    overview.add_image(window, image)
                if labels is not None:
                    store.write(window, labels.numpy())
                    overview.add_labels(window, labels)
                    counts[:] += np.bincount(labels.numpy().reshape(-1), minlength=len(counts))

            scratch = Path(folder) / "stage1"
            scratch.mkdir()
            refined = segment_scan(model, scan, keep, scratch, self._spec.window)
            self._write(work, store, overview)
        held = len(model.config.grid(scan.height, scan.width)) if isinstance(model, TwoStage) else None
        return Found(
            work=work,
            height=scan.height,
            width=scan.width,
            areas=self._areas(counts.tolist()),
            note=_note(model, refined, held) if isinstance(model, TwoStage) and held else "read by windows",
            refined=None if held is None else refined,
            patches=held,
        )

    def _write(self, work: Work, store: LabelStore, overview: Overview) -> None:
        target = storage.join(self._spec.storage, "masks", f"{work.name}.{'tif' if self._spec.mask_format == 'tiff' else 'zarr'}")
        if self._spec.mask_format == "tiff":
            storage.upload_file(store.to_tiff(store.folder.with_suffix(".tif")), target)
        else:
            storage.remove_tree(target)  # chunks of an earlier mask are no part of this one
            storage.upload_tree(store.folder, target, last=("zarr.json",))
        if self._spec.overlays:
            drawn = draw_classes(overview.image, overview.labels, self._classes)
            storage.write_bytes(storage.join(self._spec.storage, "overlays", f"{work.name}.jpg"), jpeg(drawn))

    def _areas(self, counts: list[int]) -> tuple[ClassArea, ...]:
        total, scale = max(sum(counts), 1), self._spec.mm_per_px
        return tuple(
            ClassArea(label=name, area_px=count, fraction=count / total, area_mm2=count * scale**2 if scale is not None else None)
            for name, count in zip(self._classes, counts, strict=True)
        )


def _note(model: TwoStage, refined: int, held: int) -> str:
    """How much of a scan was refined, and what to do where that is next to nothing."""
    text = f"{refined} of {held} patches refined"
    if not model.refines:
        return f"{text}: the package is stage 1 alone"
    if model.config.pick == "count" and refined < FEW * held:
        return f"{text}: a number of patches suits images of one size; for a tenth of them, --set pick=share share=0.1"
    return text


class _Progress:
    """Says how much of a scan's pixels is read and labelled, every few seconds at most."""

    def __init__(self, name: str, total: int, say: Say) -> None:
        self._name, self._total, self._say = name, total, say
        self._done, self._spoke = 0, time.monotonic()

    def add(self, pixels: int) -> None:
        """So many more are done."""
        self._done += pixels
        if time.monotonic() - self._spoke >= SAY_SECONDS:
            self._spoke = time.monotonic()
            self._say(f"{self._name}: {self._done / self._total:.0%} done")
