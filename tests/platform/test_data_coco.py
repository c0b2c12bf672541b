"""COCO files against pycocotools, and everything that can be wrong with one."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from stratum.data.coco import read_coco
from stratum.data.records import Problem
from stratum.data.source import DataSpec, Survey, load_data, survey_data
from stratum_models.errors import UserError

SQUARE = [[2, 2, 10, 2, 10, 10, 2, 10]]
CATEGORIES = [{"id": 3, "name": "rock"}, {"id": 7, "name": "belt"}]


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def annotation(ident: int, image: int, segmentation: object = None, category: int = 3, **more: object) -> dict[str, object]:
    return {"id": ident, "image_id": image, "category_id": category, "segmentation": segmentation or SQUARE, "iscrowd": 0, **more}


def coco(path: Path, annotations: list[dict[str, object]], count: int = 2, first: int = 0, **more: object) -> str:
    """A COCO file with ``count`` pictures of 30x20 beside it."""
    listed = [{"id": first + i, "file_name": f"{first + i}.png", "height": 20, "width": 30} for i in range(count)]
    for item in listed:
        picture(path.parent / str(item["file_name"]), int(str(item["id"])))
    path.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": CATEGORIES, **more}))
    return str(path)


def survey(uri: str, **more: object) -> Survey:
    return survey_data(DataSpec(uri=uri, **more))  # type: ignore[arg-type]


def kinds(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(p.severity, p.kind) for p in problems if p.kind != "empty class"]


def records(found: Survey) -> dict[str, tuple[int, ...]]:
    return {Path(r.uri).name: r.labels for r in [*found.train, *found.val]}


def test_every_mask_of_ore_belt_is_that_of_pycocotools(shared: Path) -> None:
    folder = shared / "data" / "ore_belt"
    data = load_data(DataSpec(uri=str(folder)))
    assert data.classes == ("banda", "roca", "glomero")
    compared = 0
    for part, file in ((data.train, "train.json"), (data.val, "val.json")):
        with redirect_stdout(io.StringIO()):
            reference = COCO(str(folder / file))
        by_name = {Path(image["file_name"]).name: image["id"] for image in reference.dataset["images"]}
        for i in range(0, len(part), 5):
            sample = part[i]
            expected = reference.imgToAnns[by_name[Path(sample.uri).name]]
            assert sample.target.labels.tolist() == [a["category_id"] - 1 for a in expected]
            for mask, a in zip(sample.target.masks, expected, strict=True):
                np.testing.assert_array_equal(mask.numpy(), reference.annToMask(a).astype(bool))
                compared += 1
    assert compared > 200


def test_the_ore_of_ore_belt(shared: Path) -> None:
    data = load_data(DataSpec(uri=str(shared / "data" / "ore_belt"), classes="roca+glomero=ore"))
    assert (len(data.train), len(data.val), data.classes) == (96, 24, ("ore",))
    assert (data.train.annotation_count, data.val.annotation_count) == (1578, 331)
    assert sum(not len(data.val.target(i)) for i in range(24)) == 12  # belt only: kept
    assert set(data.train.sizes) == {(250, 250)}
    belt = survey(str(shared / "data" / "ore_belt"), classes="banda=belt")
    assert ("warning", "clipped") in kinds(belt.problems)
    assert belt.dropped == {"roca": 1435, "glomero": 474}


def test_polygons_rles_and_crowds(tmp_path: Path) -> None:
    plain = {"size": [20, 30], "counts": [45, 10, 545]}
    uri = coco(tmp_path / "a.json", [annotation(1, 0), annotation(2, 0, plain, 7), annotation(3, 0, plain, iscrowd=1), annotation(4, 1)])
    found = survey(uri)
    assert kinds(found.problems) == []
    record = next(r for r in [*found.train, *found.val] if len(r.labels) > 1)
    assert record.labels == (0, 1, 0)
    assert record.crowd == (False, False, True)


def test_boxes_are_those_of_the_clipped_mask(tmp_path: Path) -> None:
    uri = coco(tmp_path / "train.json", [annotation(1, 0, [[-50, 5, 10, 5, 10, 90, -50, 90]])])
    coco(tmp_path / "val.json", [annotation(1, 5)], first=5)
    data = load_data(DataSpec(uri=str(tmp_path)))
    target = data.train[0].target
    assert uri.endswith("train.json")
    assert target.boxes.tolist() == [[0, 5, 10, 20]]
    assert target.masks[0, 5:20, 0:10].all()
    assert int(target.masks.sum()) == 150
    assert kinds(data.problems) == [("warning", "clipped")]
    assert "annotation 1" in data.problems[0].detail


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([annotation(1, 0, [[3, 3, 3, 3, 3, 3]])], [("warning", "zero area")]),
        ([annotation(1, 0, [[1, 1, 9, 9]])], [("warning", "zero area")]),
        ([annotation(1, 0, [[100, 100, 120, 100, 120, 120]])], [("warning", "clipped"), ("warning", "zero area")]),
        ([annotation(1, 0, {"size": [20, 30], "counts": [600]})], [("warning", "zero area")]),
        ([annotation(1, 0, category=4)], [("error", "unknown category")]),
        ([annotation(1, 99)], [("error", "unknown image")]),
        ([annotation(1, 0, [[1, 2, 3]])], [("error", "broken label")]),
        ([annotation(1, 0, [["a", "b"]])], [("error", "broken label")]),
        ([annotation(1, 0, {"size": [20, 31], "counts": [620]})], [("error", "broken label")]),
        ([{"image_id": 0, "category_id": 3}], [("error", "broken label")]),
        ([{"id": 1, "image_id": 0, "category_id": 3, "segmentation": [], "bbox": [1, 1, 9, 9]}], [("error", "broken label")]),
    ],
)
def test_what_is_wrong_with_an_annotation(tmp_path: Path, annotations: list[dict[str, object]], expected: list[tuple[str, str]]) -> None:
    uri = coco(tmp_path / "a.json", [*annotations, annotation(50, 0), annotation(51, 1)])
    found = survey(uri)
    assert kinds(found.problems) == expected
    assert sum(map(len, records(found).values())) == 2  # only the broken one is left out
    spec = DataSpec(uri=uri)
    if expected[0][0] == "warning":
        load_data(spec)
        return
    with pytest.raises(UserError, match=r"jobs/check_data\.py .* lists everything, --skip-broken"):
        load_data(spec)
    assert kinds(load_data(DataSpec(uri=uri, skip_broken=True)).problems) == expected


def test_missing_broken_and_mismatched_images_are_all_named(tmp_path: Path) -> None:
    uri = coco(tmp_path / "a.json", [annotation(i, i) for i in range(6)], count=6)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    picture(tmp_path / "3.png", 3, (20, 31))
    (tmp_path / "4.png").write_bytes(b"")
    found = survey(uri)
    assert sorted((p.kind, Path(p.uri).name) for p in found.problems if p.severity == "error") == [
        ("broken image", "2.png"),
        ("broken image", "4.png"),
        ("missing file", "1.png"),
        ("wrong size", "3.png"),
    ]
    assert sorted(records(found)) == ["0.png", "5.png"]
    with pytest.raises(UserError, match=r"\(and 3 more\)"):
        load_data(DataSpec(uri=uri))
    assert len(kinds(load_data(DataSpec(uri=uri, skip_broken=True)).problems)) == 4


@pytest.mark.parametrize("again", [{"id": 2, "file_name": "./0.png"}, {"id": 0, "file_name": "2.png"}])
def test_an_image_listed_twice(tmp_path: Path, again: dict[str, object]) -> None:
    uri = coco(tmp_path / "a.json", [annotation(1, 0)])
    picture(tmp_path / "2.png", 2)
    content = json.loads(Path(uri).read_text())
    content["images"].append(again)
    Path(uri).write_text(json.dumps(content))
    assert ("error", "listed twice") in kinds(survey(uri).problems)


def test_nothing_usable_is_an_error_even_when_broken_ones_are_skipped(tmp_path: Path) -> None:
    uri = coco(tmp_path / "a.json", [])
    for file in tmp_path.glob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="0 usable images for training"):
        load_data(DataSpec(uri=uri, skip_broken=True))


@pytest.mark.parametrize("labelled", ["as shown", "as stored"])
def test_rotated_photographs(tmp_path: Path, labelled: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("0.jpg", "1.jpg"):
        image = Image.fromarray(np.random.default_rng(int(name[0])).integers(0, 256, (20, 30, 3), dtype=np.uint8))
        image.save(tmp_path / name, exif=exif)
    height, width = (30, 20) if labelled == "as shown" else (20, 30)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(2)]
    content = {"images": images, "annotations": [annotation(1, 0), annotation(2, 1)], "categories": CATEGORIES}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = load_data(DataSpec(uri=str(tmp_path), classes="rock"))
    sample = data.train[0]
    assert sample.image.shape == (3, height, width)
    assert sample.target.masks.shape == (1, height, width)
    assert kinds(data.problems) == ([] if labelled == "as shown" else [("warning", "not rotated")] * 2)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '"x"', "{}", '{"images": [], "annotations": []}', '{"images": [{"id": 1}], "annotations": [], "categories": []}', "\udc80"],
)
def test_a_json_that_is_no_coco(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"a\.json(: not valid JSON| is no COCO)") as caught:
        load_data(DataSpec(uri=str(path)))
    assert "\n" not in str(caught.value)


def test_categories_come_in_the_order_of_their_ids_and_roboflows_project_name_is_no_class(tmp_path: Path) -> None:
    categories = [{"id": 2, "name": "b"}, {"id": 0, "name": "my-project"}, {"id": 1, "name": "a"}]
    uri = coco(tmp_path / "x.json", [annotation(1, 0, category=2), annotation(2, 1, category=1)], categories=categories)
    assert list(read_coco(uri).categories.values()) == ["my-project", "a", "b"]
    assert survey(uri).classes == ("a", "b")


def test_categories_of_both_files_are_joined_by_name(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", [annotation(1, 0)])
    coco(tmp_path / "val.json", [annotation(1, 5, category=1)], first=5, categories=[{"id": 1, "name": "slag"}, {"id": 2, "name": "rock"}])
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert data.classes == ("rock", "belt", "slag")
    assert data.val.target(0).labels.tolist() == [2]
    assert sorted(p.detail for p in data.problems) == [f"no instance of {c!r} in the training part" for c in ("belt", "slag")]


def test_images_that_no_file_lists_are_mentioned(tmp_path: Path) -> None:
    coco(tmp_path / "train.json", [annotation(1, 0), annotation(2, 1)])
    coco(tmp_path / "val.json", [annotation(1, 5)], first=5)
    assert kinds(survey(str(tmp_path)).problems) == []
    for i in range(10, 15):
        picture(tmp_path / f"{i}.png", i)
    picture(tmp_path / "other" / "x.png", 99)
    (problem,) = (p for p in survey(str(tmp_path)).problems if p.kind != "empty class")
    assert (problem.severity, problem.kind, problem.uri) == ("warning", "unlisted image", str(tmp_path))
    assert problem.detail == "5 images (10.png, 11.png, 12.png and 2 more) not in train.json and val.json, so not used"
    assert kinds(survey(str(tmp_path / "train.json")).problems) == []


def test_deep_nesting_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_coco(str(tmp_path / "a.json"))
