"""Classes of images of any size, and what is written of them, with models whose answer is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stratum.data.slag_scene import CLASSES
from stratum.data.source import DataSpec, load_data
from stratum.inference import classes
from stratum.inference.classes import find_classes, labels_of
from stratum.inference.masks import MaskResults, MaskWriter, shrunk
from stratum.inference.work import BatchSpec, Found, Work
from stratum.slag import measure_slag
from stratum_models.errors import UserError
from stratum_models.interface import Prediction, SegmentationModel, SemanticPrediction, SemanticTarget, Target
from stratum_models.package import Manifest


class ByBrightness(SegmentationModel):
    """Class i where the red of a pixel lies in the i-th third; it keeps the sizes that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.num_classes = "semantic", 3
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        raise AssertionError("it is only asked to predict")

    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        self.seen += [(int(image.shape[1]), int(image.shape[2])) for image in images]
        middles = torch.tensor([1 / 6, 1 / 2, 5 / 6]).view(3, 1, 1)
        return [SemanticPrediction(probabilities=(-((image[:1] - middles) ** 2) * 20).softmax(0)) for image in images]


def thirds(image: Tensor) -> Tensor:
    return (image[0].float() / 255 * 3).long().clamp(max=2)


def test_windows_give_what_the_whole_gives() -> None:
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 50), (130, 77), (64, 64))]
    model = ByBrightness()
    whole, windowed, exact = find_classes(model, images, window=64, batch=3)
    assert isinstance(whole, SemanticPrediction)
    assert isinstance(windowed, Tensor)
    assert isinstance(exact, SemanticPrediction)  # as large as a window is not larger
    assert set(model.seen[2:]) == {(64, 64)}
    for image, found in zip(images, (whole, windowed, exact), strict=True):
        assert labels_of(found).dtype == torch.uint8
        assert torch.equal(labels_of(found).long(), thirds(image))
    assert all(isinstance(found, SemanticPrediction) for found in find_classes(model, images))


def test_no_more_images_are_predicted_together_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((10, 10), (10, 30), (10, 5), (10, 5), (50, 50), (10, 10))]
    monkeypatch.setattr(classes, "TOGETHER", 400)
    model = ByBrightness()
    calls: list[int] = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda given: calls.append(len(given)) or predict(given))  # type: ignore[func-returns-value]
    found = find_classes(model, images)
    assert calls == [2, 2, 1, 1]
    assert all(torch.equal(labels_of(one).long(), thirds(image)) for one, image in zip(found, images, strict=True))


class Oracle(ByBrightness):
    """Answers with the labels that it is given, whatever it sees."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        assert len(images) == len(self.masks)
        return [SemanticPrediction(probabilities=nn.functional.one_hot(mask, 3).permute(2, 0, 1).float()) for mask in self.masks]


def test_the_band_of_slag_is_that_of_the_labels(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri="synthetic://slag?images=4&size=96"))
    samples = [data.train[index] for index in range(3)]
    masks = [sample.target.mask for sample in samples if isinstance(sample.target, SemanticTarget)]
    masks[2] = masks[2].clamp(max=1)  # no slag
    spec = BatchSpec(data="x", storage=str(tmp_path), tube_diameter_mm=50.0)
    manifest = Manifest(preset="slag_deeplab", classes=CLASSES, num_classes=3, task="semantic")
    works = [Work(index=index, uri=f"{index}.png", name=str(index)) for index in range(3)]
    found = MaskWriter(spec, manifest).find(Oracle(masks), works, [sample.image for sample in samples])
    assert [Found.from_json(one.to_json()) for one in found] == found  # what an actor sends is what arrives
    for one, mask in zip(found[:2], masks, strict=False):
        band = measure_slag(mask.numpy(), tube=1, slag=2, tube_diameter_mm=50.0)
        assert one.band is not None
        assert one.band.height_mm == pytest.approx(band.height_mm, rel=0.05)
        assert np.array_equal(np.array(Image.open(tmp_path / "masks" / f"{one.work.name}.png")), mask.numpy())
        assert one.areas[2].area_mm2 == pytest.approx(int((mask == 2).sum()) * (one.band.mm_per_px or 0) ** 2)
    assert found[2].band is None
    assert "shows no slag" in found[2].note
    results = MaskResults([*found, Found(work=works[0], error="no such file")], manifest, spec)
    results.write(tmp_path)
    slag = results.record["slag"]
    assert (slag["measured"], slag["not_measured"], results.record["broken"]) == (2, 1, 1)
    heights = [one.band.height_mm for one in found if one.band and one.band.height_mm]
    assert slag["height_mm"] == pytest.approx(sum(heights) / 2)
    assert results.metrics()["predict/slag_height_mm"] == slag["height_mm"]
    lines = (tmp_path / "slag.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("2.png,,")
    assert "shows no slag" in lines[3]
    assert {"measurements.csv", "areas.json", "areas.png", "legend.png"} <= {path.name for path in tmp_path.iterdir()}


def test_large_overlays_are_shrunk() -> None:
    image, labels = torch.full((3, 30, 60), 90, dtype=torch.uint8), torch.zeros(30, 60, dtype=torch.uint8)
    labels[:, 30:] = 2
    small, small_labels = shrunk(image, labels, 20)
    assert (small.shape, small_labels.shape) == ((3, 10, 20), (10, 20))
    assert small.unique().tolist() == [90]
    assert (small_labels[:, :10] == 0).all()
    assert (small_labels[:, 10:] == 2).all()
    assert shrunk(image, labels, 60)[0] is image


@pytest.mark.parametrize("change", [{"window": 8}, {"tube_diameter_mm": -1.0}, {"tube_diameter_mm": 3.0, "mm_per_px": 1.0}])
def test_numbers_that_make_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(UserError):
        BatchSpec(**{"data": "x", "storage": "y", **change})  # type: ignore[arg-type]
