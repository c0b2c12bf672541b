"""Scans are segmented part by part as they would be whole, and their masks written by tiles."""

import errno
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from stratum import storage
from stratum.data.label_store import TILE, LabelStore
from stratum.data.scans import in_memory, open_scan
from stratum.data.windows import Window
from stratum.inference import scan_masks
from stratum.inference.batch import cpus_for, is_large, list_work
from stratum.inference.classes import find_classes, window_of
from stratum.inference.masks import MaskResults
from stratum.inference.scan_masks import ScanWriter
from stratum.inference.scans import even_regions, regions, segment_scan
from stratum.inference.work import BatchSpec, Found, Work
from stratum.report.overview import Overview
from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel, SemanticPrediction
from stratum_models.package import Manifest
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel
from stratum_models.two_stage.model import TwoStage

HEIGHT, WIDTH = 150, 190
UNET: dict[str, Any] = {"preset": "unet_s2", "classes": ("a", "b", "c"), "num_classes": 3, "task": "semantic"}


def picture(*, deep: bool = False) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16) if deep else rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@settings(deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), core=st.integers(1, 40), halo=st.integers(0, 20))
def test_cores_cover_every_pixel_once(height: int, width: int, core: int, halo: int) -> None:
    seen = torch.zeros(height, width, dtype=torch.int64)
    for region in regions(height, width, core, halo):
        region.core.of(seen).add_(1)
        ids = torch.arange(height * width).view(height, width)
        assert torch.equal(region.inside(region.window.of(ids)), region.core.of(ids))
        assert region.window.top == max(region.core.top - halo, 0)
        assert region.window.left + region.window.width == min(region.core.left + region.core.width + halo, width)
    assert bool((seen == 1).all())


@settings(deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 40))
def test_windows_of_one_size_surround_cores_that_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    seen, halo = torch.zeros(height, width, dtype=torch.int64), side // 8
    for region in even_regions(height, width, side, halo):
        region.core.of(seen).add_(1)
        assert (region.window.height, region.window.width) == (min(side, height), min(side, width))
        for core, around, length in (
            ((region.core.top, region.core.height), (region.window.top, region.window.height), height),
            ((region.core.left, region.core.width), (region.window.left, region.window.width), width),
        ):
            assert around[0] <= max(core[0] - halo, 0)
            assert sum(around) >= min(sum(core) + halo, length)
    assert bool((seen == 1).all())


class Kept:
    """What was handed out, put together."""

    def __init__(self, height: int, width: int) -> None:
        self.image = torch.zeros(3, height, width, dtype=torch.uint8)
        self.labels = torch.full((height, width), 99, dtype=torch.uint8)

    def __call__(self, window: Window, image: Tensor | None, labels: Tensor | None) -> None:
        if image is not None:
            window.of(self.image).copy_(image)
        if labels is not None:
            assert bool((window.of(self.labels) == 99).all())
            window.of(self.labels).copy_(labels)


def segmented(model: SegmentationModel, image: Tensor, scratch: Path, window: int) -> tuple[Tensor, int]:
    kept = Kept(*image.shape[1:])
    refined = segment_scan(model, in_memory(image), kept, scratch, window)
    assert torch.equal(kept.image, image)
    assert not list(scratch.iterdir())
    return kept.labels, refined


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def whole_labels(model: SegmentationModel, image: Tensor) -> Tensor:
    (found,) = model.predict([image.float() / 255])
    assert isinstance(found, SemanticPrediction)
    return found.probabilities.argmax(0).to(torch.uint8)


def pixelwise() -> SemanticModel:
    return SemanticModel(nn.Conv2d(3, 3, 1), 3, SemanticConfig(), divisor=1)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    window=st.sampled_from([32, 50, 64]),
    margin=st.integers(0, 8),
    blend=st.booleans(),
    rule=st.sampled_from(
        [{"pick": "count", "count": 7}, {"pick": "share", "share": 0.4}, {"pick": "threshold", "threshold": 0.5, "cap": 9}]
    ),
)
def test_the_least_sure_patches_of_the_whole_scan_are_refined(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, window: int, margin: int, blend: bool, rule: dict[str, object]
) -> None:
    """With stages that look at single pixels, windows must give what the whole gives."""
    torch.manual_seed(0)
    config = build_model(
        "two_stage_debug", num_classes=3, overrides={"patch": 8, "margin": margin, "blend": blend, "scale": 1, **rule}
    ).config
    model = TwoStage(pixelwise(), pixelwise(), config).eval()  # type: ignore[arg-type]
    image = noise(height, width)
    labels, refined = segmented(model, image, tmp_path_factory.mktemp("scratch"), window)
    (probabilities,) = model.coarse([image.float() / 255])
    assert refined == len(model.pick(probabilities))
    assert float((labels != whole_labels(model, image)).float().mean()) <= 0.002  # sums in another order may turn a tie
    found, small = find_classes(model, [image, image[:, :32, :32]], window=window)  # images in windows are gone over in the same way
    assert torch.equal(found, labels) if isinstance(found, Tensor) else max(height, width) <= window
    assert isinstance(small, SemanticPrediction)


@pytest.mark.parametrize("options", [{}, {"prior": True, "blend": True, "pick": "share", "share": 0.3, "scale": 3.5}])
def test_a_scan_of_one_window_is_predicted_as_an_image(tmp_path: Path, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=2, overrides=options).eval()
    image = noise(90, 150)
    labels, refined = segmented(model, image, tmp_path, 512)
    assert torch.equal(labels, whole_labels(model, image))
    assert refined > 0


def test_before_stage_2_has_learnt_stage_1_speaks_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=2).eval()
    model.refines.fill_(False)  # type: ignore[operator, union-attr]
    image = noise(90, 150)
    labels, refined = segmented(model, image, tmp_path, 512)
    assert refined == 0
    assert torch.equal(labels, whole_labels(model, image))


def test_any_semantic_model_labels_a_scan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = pixelwise().eval(), noise(100, 130)
    assert torch.equal(segmented(model, image, tmp_path, 32)[0], whole_labels(model, image))
    network = build_model("unet_s2_debug", num_classes=2).eval()
    assert torch.equal(segmented(network, image, tmp_path, 1024)[0], whole_labels(network, image))


@pytest.mark.parametrize("options", [{"input_short": 64}, {"input_scale": 0.5}])
def test_all_windows_have_the_scale_of_the_images_in_training(tmp_path: Path, options: dict[str, float]) -> None:
    """Trained on images of 128 pixels at half their size; of the last strip, 22 pixels are new."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 3, padding=1)
    image = noise(150, 200)
    halved = SemanticModel(network, 3, SemanticConfig(input_scale=0.5), divisor=1).eval()
    model = SemanticModel(network, 3, SemanticConfig(**options), divisor=1).eval()  # type: ignore[arg-type]
    assert torch.equal(segmented(model, image, tmp_path, 128)[0], whole_labels(halved, image))


@pytest.mark.parametrize("preset", ["two_stage_debug", "hrnet_debug"])
def test_a_package_that_scales_whole_images_cannot_label_scans(tmp_path: Path, preset: str) -> None:
    model = build_model(preset, num_classes=2, overrides={"input_short": 64}).eval()
    with pytest.raises(UserError, match="train it with --size 0"):
        segment_scan(model, in_memory(noise(64, 64)), Kept(64, 64), tmp_path)


@pytest.mark.parametrize("size", [(TILE + 30, 2 * TILE), (5, 7)])
def test_masks_are_written_by_tiles(tmp_path: Path, size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 5, size, dtype=np.uint8)
    store = LabelStore(tmp_path / "m.zarr", *size)
    for region in regions(*size, 300, 0):
        store.write(region.core, region.core.of(torch.from_numpy(labels)).numpy())
    assert np.array_equal(np.asarray(zarr.open(tmp_path / "m.zarr", mode="r")[:]), labels)  # type: ignore[index]
    with tifffile.TiffFile(store.to_tiff(tmp_path / "m.tif")) as file:
        assert file.pages[0].aspage().tile == (TILE, TILE)
        assert np.array_equal(file.asarray(), labels)


def test_an_overview_is_put_together_from_parts() -> None:
    image, labels = torch.full((3, 100, 160), 70, dtype=torch.uint8), torch.zeros(100, 160, dtype=torch.uint8)
    labels[:, 80:] = 2
    overview = Overview(100, 160, 40)
    for region in regions(100, 160, 33, 0):
        overview.add_image(region.core, region.core.of(image))
        overview.add_labels(region.core, region.core.of(labels))
    assert overview.image.shape == (3, 25, 40)
    assert overview.image.unique().tolist() == [70]
    assert (overview.labels == labels[::4, ::4]).float().mean() > 0.95


def test_two_stages_have_windows_of_their_own_whatever_the_tiles_of_training() -> None:
    shared: dict[str, Any] = {"classes": ("a", "b"), "num_classes": 2, "task": "semantic", "tile": 256}
    two, one = Manifest(preset="two_stage_debug", **shared), Manifest(preset="unet_s2", **shared)
    assert [window_of(manifest, asked) for manifest in (two, one) for asked in (None, 0, 512)] == [2048, 0, 512, 256, 0, 512]


def test_a_model_that_scales_images_needs_no_windows() -> None:
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=2, overrides={"input_short": 64}).eval()
    image = noise(90, 150)
    (found,) = find_classes(model, [image], window=64)
    assert isinstance(found, SemanticPrediction)
    assert torch.equal(found.probabilities.argmax(0).to(torch.uint8), whole_labels(model, image))


def test_the_folder_for_temporary_files_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", tile=(64, 64))
    writer = ScanWriter(BatchSpec(data="x", storage=str(tmp_path)), Manifest(**UNET), None)
    work = Work(index=0, uri=str(tmp_path / "a.tif"), name="a")
    two_stages = build_model("two_stage_debug", num_classes=3).eval()
    for free, model, words in ((2**16 + 80_000, two_stages, "0 MiB are needed"), (0, pixelwise(), "no space is left")):
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
            patched.setattr(LabelStore, "write", lambda *given: np.zeros(3).reshape(2))
            with pytest.raises(UserError, match=f"{words}.*set TMPDIR") as caught:
                writer.find(model, work)
        assert "\n" not in str(caught.value)
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")):

        def fail(*_: object, error: OSError = error) -> None:
            raise RuntimeError("a chunk was not written") from error

        monkeypatch.setattr(LabelStore, "write", fail)
        with pytest.raises(UserError if error.errno == errno.ENOSPC else RuntimeError):
            writer.find(pixelwise(), work)
    monkeypatch.setattr(LabelStore, "write", lambda *given: np.zeros(3).reshape(2))
    with pytest.raises(ValueError, match="reshape"):  # anything else is what it is
        writer.find(pixelwise(), work)


def test_large_files_are_work_of_their_own_with_all_the_cpus_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", tile=(64, 64))
    names = ["a.tif", "a.zarr", "a.png", "missing.tif"]
    assert [is_large(str(tmp_path / name)) for name in names] == [False, True, False, False]
    monkeypatch.setattr("stratum.inference.batch.LARGE", 1000)
    assert [is_large(str(tmp_path / name)) for name in names] == [True, True, False, False]
    assert not is_large("synthetic://vessels?images=1#0")
    cases = [(1, [2]), (2, [2]), (3, [2]), (1, [8, 8]), (3, [8, 8]), (3, [8, 2, 0.5]), (1, [])]
    assert [cpus_for(actors, nodes) for actors, nodes in cases] == [2, 1, 1, 8, 4, 2, 1]


def test_what_is_written_of_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_masks, "SAY_SECONDS", 0.0)
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", tile=(64, 64))
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=2).eval()
    manifest = Manifest(preset="two_stage_debug", classes=("ground", "vessel"), num_classes=2, task="semantic")
    spec = BatchSpec(data="x", storage=str(tmp_path / "out"), mm_per_px=0.5)
    said: list[str] = []
    work = Work(index=0, uri=str(tmp_path / "a.tif"), name="deep/a")
    found = ScanWriter(spec, manifest, None).find(model, work, said.append)
    assert said == ["deep/a: 50% done", "deep/a: 100% done"]
    mask = tifffile.imread(tmp_path / "out" / "masks" / "deep" / "a.tif")
    assert np.array_equal(mask, whole_labels(model, torch.from_numpy(picture().transpose(2, 0, 1).copy())).numpy())
    assert [area.area_px for area in found.areas] == np.bincount(mask.ravel(), minlength=2).tolist()
    assert found.areas[1].area_mm2 == found.areas[1].area_px * 0.25
    assert (found.height, found.width, found.note) == (HEIGHT, WIDTH, "2 of 30 patches refined")
    (record,) = MaskResults([Found.from_json(found.to_json())], manifest, spec).record["scans"].values()
    assert record == {"refined": 2, "patches": 30}
    for options, note in (
        ({"count": 1}, "1 of 30 .* --set pick=share share=0.1"),
        ({"pick": "share", "share": 0.03}, "1 of 30 patches refined$"),
    ):
        model = build_model("two_stage_debug", num_classes=2, overrides=options).eval()
        assert re.match(note, ScanWriter(spec, manifest, None).find(model, work).note)
    assert (tmp_path / "out" / "overlays" / "deep" / "a.jpg").stat().st_size > 0


def test_scans_and_their_masks_on_s3(s3_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    zarr.create_array(tmp_path / "a.zarr", shape=(HEIGHT, WIDTH, 3), chunks=(64, 64, 3), dtype="uint8")[:] = picture()
    place = f"s3://{s3_env.bucket()}"
    storage.upload_tree(tmp_path / "a.zarr", f"{place}/in/a.zarr")
    spec = BatchSpec(data=f"{place}/in", storage=f"{place}/out", mask_format="zarr")
    (work,) = list_work(spec)
    assert (work.uri, work.name) == (f"{place}/in/a.zarr", "a")
    model = pixelwise().eval()
    manifest = Manifest(**UNET)
    found = ScanWriter(spec, manifest, None).find(model, work)
    with open_scan(f"{place}/out/masks/a.zarr") as scan:
        mask = scan.read(Window(top=0, left=0, height=HEIGHT, width=WIDTH))[0]
    assert torch.equal(mask, whole_labels(model, torch.from_numpy(picture().transpose(2, 0, 1).copy())))
    assert sum(area.area_px for area in found.areas) == HEIGHT * WIDTH
    assert storage.exists(f"{place}/out/overlays/a.jpg")
