"""Class masks painted from the shapes of COCO and Labelme files, against masks drawn by hand."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stratum.data.class_table import class_table
from stratum.data.classes import parse_classes
from stratum.data.classmask import paint
from stratum.data.rle import encode
from stratum.data.source import Dataset, DataSpec, load_data, survey_data
from stratum_models.errors import UserError
from stratum_models.interface import SemanticTarget


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)


def masks_of(data: Dataset) -> dict[str, np.ndarray]:
    found = {}
    for sample in [part[i] for part in (data.train, data.val) for i in range(len(part))]:
        assert isinstance(sample.target, SemanticTarget)
        found[Path(sample.uri).stem] = sample.target.mask.numpy()
    return found


def square(x: int, y: int, side: int) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def coco(path: Path, names: Sequence[str] = ("belt", "rock")) -> str:
    for i in range(2):
        picture(path / f"{i}.png", i)
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 2, "segmentation": [square(4, 4, 3)]},
        {"id": 2, "image_id": 0, "category_id": 1, "segmentation": [square(2, 2, 8)]},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 5)], "iscrowd": 1},
        {"id": 4, "image_id": 1, "category_id": 2, "segmentation": [square(8, 8, 2)]},
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    images = [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in range(2)]
    (path / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)


def test_coco_as_class_masks_with_smaller_shapes_on_top(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    uri = coco(tmp_path)
    assert load_data(DataSpec(uri=uri)).task == "instance"
    data = load_data(DataSpec(uri=uri, task="semantic"))
    assert data.classes == ("background", "belt", "rock")
    expected = np.zeros((12, 16), dtype=int)
    expected[2:10, 2:10] = 1
    expected[4:7, 4:7] = 2
    masks = masks_of(data)
    np.testing.assert_array_equal(masks["0"], expected)
    assert (masks["1"] == 1).sum() == 25
    assert (masks["1"] == 2).sum() == 4
    chosen = masks_of(load_data(DataSpec(uri=uri, task="semantic", classes="belt")))
    np.testing.assert_array_equal(chosen["0"], expected == 1)  # where the rock lies is no belt
    merged = masks_of(load_data(DataSpec(uri=uri, task="semantic", classes="belt+rock=thing")))
    np.testing.assert_array_equal(merged["0"], expected > 0)
    coco(tmp_path, ("background", "rock"))
    assert load_data(DataSpec(uri=uri, task="semantic")).classes == ("background", "rock")


def labelme(path: Path, shapes: Sequence[dict[str, object]], image: str = "", **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.0.1", "shapes": shapes, "imagePath": image, "imageHeight": 12, "imageWidth": 16, **more}
    path.write_text(json.dumps(content))


def shape(label: str, points: Sequence[Sequence[float]], kind: str = "polygon") -> dict[str, object]:
    return {"label": label, "points": points, "shape_type": kind}


def test_labelme_shapes(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    labelme(tmp_path / "0.json", [shape("rock", [[2, 3], [8, 3], [8, 9], [2, 9]]), shape("dust", [[4, 4], [6, 7]], "rectangle")], "0.png")
    labelme(
        tmp_path / "1.json",
        [shape("rock", [[8, 6], [8, 10]], "circle"), shape("__ignore__", [[0, 0], [3, 2]], "rectangle")],
        "..\\x\\1.png",
    )
    labelme(tmp_path / "2.json", [shape("_background_", [[0, 0], [16, 12]], "rectangle")])
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert (data.task, data.classes, data.problems) == ("semantic", ("background", "dust", "rock"), [])
    masks = masks_of(data)
    expected = np.zeros((12, 16), dtype=int)
    expected[3:9, 2:8] = 2
    expected[4:7, 4:6] = 1
    np.testing.assert_array_equal(masks["0"], expected)
    rows, columns = np.mgrid[:12, :16] + 0.5
    disk = np.hypot(rows - 6, columns - 8)
    assert (masks["1"][disk < 3.4] == 2).all()
    assert (masks["1"][disk > 4.6] != 2).all()
    assert abs((masks["1"] == 2).sum() - np.pi * 16) < 4
    assert (masks["1"][:2, :3] == 255).all()
    assert not masks["2"].any()


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("values", ["bilevel", "grey"])
def test_labelme_masks(tmp_path: Path, values: str) -> None:
    pixels = np.random.default_rng(0).random((4, 6)) < 0.5
    mask = {**shape("rock", [[3, 2], [8, 5]], "mask"), "mask": png(pixels if values == "bilevel" else pixels.astype(np.uint8))}
    for i in range(2):
        picture(tmp_path / f"{i}.png", i)
        labelme(tmp_path / f"{i}.json", [mask, shape("rock", [[0, 0], [2, 2]], "line")])
    data = load_data(DataSpec(uri=str(tmp_path)))
    expected = np.zeros((12, 16), dtype=int)
    expected[2:6, 3:9] = pixels
    np.testing.assert_array_equal(masks_of(data)["0"], expected)
    assert [p.kind for p in data.problems] == ["shape left out"] * 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mask": "no base64"}, "shape 0 (rock): "),
        ({"mask": base64.b64encode(b"no picture").decode()}, "its mask is no whole PNG"),
        ({"points": [[3, 2], [9, 5]]}, "its mask has 6x4 pixels, its box 7x4"),
        ({"points": [[12, 2], [17, 5]]}, "does not lie in the image of 16x12 pixels"),
    ],
)
def test_labelme_masks_that_cannot_be_used(tmp_path: Path, change: dict[str, object], says: str) -> None:
    picture(tmp_path / "0.png", 0)
    labelme(tmp_path / "0.json", [{**shape("rock", [[3, 2], [8, 5]], "mask"), "mask": png(np.ones((4, 6), dtype=bool)), **change}])
    (problem, *_) = survey_data(DataSpec(uri=str(tmp_path))).errors
    assert (problem.kind, problem.uri) == ("broken label", str(tmp_path / "0.json"))
    assert says in problem.detail


def test_a_broken_first_file_leaves_the_others_labelmes(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
        labelme(tmp_path / f"{i}.json", [shape("rock", [[2, 3], [8, 3], [8, 9]])])
    (tmp_path / "0.json").write_text('{"shapes": [')
    with pytest.raises(UserError, match=rf"unreadable file: {tmp_path}/0.json"):
        load_data(DataSpec(uri=str(tmp_path)))
    data = load_data(DataSpec(uri=str(tmp_path), skip_broken=True))
    assert (data.classes, len(data.train) + len(data.val)) == (("background", "rock"), 2)


def test_labelme_folders_and_named_classes(tmp_path: Path) -> None:
    for i in range(3):
        part = "train" if i < 2 else "val"
        picture(tmp_path / part / f"{i}.png", i)
        labelme(tmp_path / part / f"{i}.json", [shape("rock", [[2, 3], [8, 3], [8, 9]])])
    picture(tmp_path / "train" / "spare.png", 9)
    (tmp_path / "classes.json").write_text(json.dumps(["background", "belt", "rock"]))
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert data.classes == ("background", "belt", "rock")
    assert (len(data.train), len(data.val)) == (2, 1)
    assert set(np.unique(data.train[0].target.mask)) == {0, 2}
    assert [(p.severity, p.kind) for p in data.problems] == [("warning", "unlisted image"), ("warning", "empty class")]


def test_many_categories_merged_into_few() -> None:
    known = ["background", *[f"c{i}" for i in range(1, 300)]]
    table = class_table(known, parse_classes("+".join(known[1:]) + "=thing"))
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0], masks[1, 1] = True, True
    painted = paint((255, 299), encode(masks), (4, 4), table)
    assert painted.tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]
