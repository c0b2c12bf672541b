"""What is written of a scan: a tiled mask, a small overlay, and the areas of its classes."""

import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from stratum import storage
from stratum.data.images import DepthRule
from stratum.data.label_store import LabelStore
from stratum.data.scans import open_scan
from stratum.data.windows import Window
from stratum.inference.outputs import jpeg
from stratum.inference.scans import segment_scan
from stratum.inference.work import BatchSpec, Found, Work
from stratum.report.class_overlays import draw_classes
from stratum.report.overview import Overview
from stratum.slag import ClassArea
from stratum_models.interface import SegmentationModel
from stratum_models.package import Manifest

OVERVIEW = 2048  # pixels of the overlay's longer side


class ScanWriter:
    """Predicts scans in an actor; of each it writes a mask of class indices, ``masks/NAME.tif`` or ``.zarr``, and an overlay.

    Masks grow on the disk for temporary files, and are copied when they are whole.
    """

    def __init__(self, spec: BatchSpec, manifest: Manifest, depth: DepthRule | None) -> None:
        self._spec, self._classes, self._depth = spec, manifest.classes, depth

    def find(self, model: SegmentationModel, work: Work) -> Found:
        """What is in a scan. Raises UserError where it cannot be read."""
        with open_scan(work.uri, self._depth) as scan, tempfile.TemporaryDirectory(prefix="stratum-scan-") as folder:
            store = LabelStore(Path(folder) / "mask.zarr", scan.height, scan.width)
            overview = Overview(scan.height, scan.width, OVERVIEW)
            counts = np.zeros(len(self._classes), dtype=np.int64)

            def keep(window: Window, image: Tensor | None, labels: Tensor | None) -> None:
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
        return Found(
            work=work,
            height=scan.height,
            width=scan.width,
            areas=self._areas(counts.tolist()),
            note=f"read by windows; {refined} patches refined" if refined else "read by windows",
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
