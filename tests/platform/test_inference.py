"""What is written for one image, without Ray."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stratum import storage
from stratum.inference.batch import list_work, read
from stratum.inference.outputs import annotations_of, coco_document, grey_png, id_mask, instances_of, jpeg, output_names, visible
from stratum.inference.work import BatchSpec
from stratum.report.overlays import draw_instances
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, SemanticPrediction


def prediction_of(count: int, height: int = 8, width: int = 10) -> InstancePrediction:
    """Stripes of two rows, each over one row of the next."""
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for index in range(count):
        masks[index, index : index + 2] = True
    boxes = torch.tensor([[0.0, index, width, index + 2] for index in range(count)]).reshape(-1, 4)
    return InstancePrediction(
        boxes=boxes, scores=torch.linspace(0.9, 0.1, count), labels=torch.zeros(count, dtype=torch.int64), masks=masks
    )


def test_of_overlapping_instances_the_better_is_on_top() -> None:
    ids = id_mask(prediction_of(3))
    assert ids[:, 0].tolist() == [1, 1, 2, 3, 0, 0, 0, 0]


def test_instances_without_a_pixel_are_left_out() -> None:
    prediction = prediction_of(3)
    prediction.masks[1] = False
    kept = visible(prediction)
    assert kept.scores.tolist() == [prediction.scores[0], prediction.scores[2]]
    assert len(visible(prediction_of(0))) == 0


def test_ids_beyond_eight_bits_survive_the_png() -> None:
    ids = np.arange(80, dtype=np.uint16).reshape(8, 10) * 800
    assert np.array_equal(np.array(Image.open(io.BytesIO(grey_png(ids)))), ids)


@pytest.mark.parametrize("count", [0, 3])
def test_an_image_with_and_without_instances(count: int) -> None:
    prediction = prediction_of(count)
    assert id_mask(prediction).max() == count
    document = coco_document(
        [{"file_name": "a.png", "height": 8, "width": 10, "annotations": annotations_of(prediction)} for _ in range(2)], ("ore",)
    )
    assert [one["id"] for one in document["annotations"]] == list(range(1, 2 * count + 1))
    assert all(one["area"] == 20 and one["category_id"] == 1 for one in document["annotations"])
    picture = Image.open(io.BytesIO(jpeg(draw_instances(torch.zeros(3, 8, 10, dtype=torch.uint8), prediction.masks))))
    assert picture.size == (10, 8)


def test_results_of_equal_names_do_not_overwrite_each_other() -> None:
    assert output_names(["a.png", "a.jpg", "b/a.png", "b.c/noend"]) == {
        "a.png": "a.png",
        "a.jpg": "a.jpg",
        "b/a.png": "b/a",
        "b.c/noend": "b.c/noend",
    }


def test_a_semantic_prediction_has_no_instances() -> None:
    with pytest.raises(UserError, match="semantic"):
        instances_of(SemanticPrediction(probabilities=torch.rand(2, 4, 4)))


def spec_of(data: str, storage: str = "/nowhere") -> BatchSpec:
    return BatchSpec(data=data, storage=storage, score_threshold=0.5)


def test_a_single_file_is_work_too(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("L", (4, 4)).save(path)
    (work,) = list_work(spec_of(str(path)))
    assert (work.uri, work.name) == (str(path), "one")
    assert read(work.uri, None).shape == (3, 4, 4)


def test_images_of_s3_leave_nothing_on_the_disk(s3_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    uri = f"s3://{s3_env.bucket()}/one.png"
    storage.write_bytes(uri, grey_png(np.zeros((4, 4), np.uint8)))
    assert read(uri, None).shape == (3, 4, 4)
    assert not (tmp_path / "cache").exists()


def test_synthetic_images_are_drawn_where_they_are_needed() -> None:
    works = list_work(spec_of("synthetic://ore?images=4&size=64"))
    assert [work.name for work in works] == ["000000", "000001", "000002", "000003"]
    assert read(works[3].uri, None).shape == (3, 64, 64)
    assert torch.equal(read(works[1].uri, None), read(works[1].uri, None))


def test_what_an_earlier_run_wrote_is_not_predicted(tmp_path: Path) -> None:
    for name in ("a.png", "masks/a.png", "overlays/a.jpg", "sizes.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert [work.name for work in list_work(spec_of(str(tmp_path), str(tmp_path)))] == ["a"]


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"workers": -1}, {"score_threshold": 1.5}, {"mm_per_px": 0.0}])
def test_numbers_that_make_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(UserError):
        BatchSpec(**{"data": "x", "storage": "y", "score_threshold": 0.5, **change})  # type: ignore[arg-type]
