"""Where annotation files, images and masks may lie."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stratum.data.layouts import CocoPart, MaskPart, find_layout
from stratum.data.source import DataSpec, load_data, survey_data
from stratum_models.errors import UserError


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def coco(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]} for i in range(len(names))]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "rock"}]}))


# annotation files with the names in them, and where the images lie
COCO_LAYOUTS = {
    "beside": ({"train.json": ["images/a.png"], "val.json": ["images/b.png"]}, ["images/a.png", "images/b.png"]),
    "in images": ({"train.json": ["a.png"], "val.json": ["b.png"]}, ["images/a.png", "images/b.png"]),
    "in the split": ({"train.json": ["a.png"], "val.json": ["b.png"]}, ["train/a.png", "val/b.png"]),
    "valid": ({"train.json": ["a.png"], "valid.json": ["b.png"]}, ["images/train/a.png", "images/valid/b.png"]),
    "coco": (
        {
            "annotations/instances_train2017.json": ["a.png"],
            "annotations/instances_val2017.json": ["b.png"],
            "annotations/captions_train2017.json": [],
            "annotations/captions_val2017.json": [],
        },
        ["train2017/a.png", "val2017/b.png"],
    ),
    "coco images": (
        {"annotations/instances_train2017.json": ["a.png"], "annotations/instances_val2017.json": ["b.png"]},
        ["images/train2017/a.png", "images/val2017/b.png"],
    ),
    "coco stuff": (
        {"annotations/stuff_train2017.json": ["a.png"], "annotations/stuff_val2017.json": ["b.png"]},
        ["train2017/a.png", "val2017/b.png"],
    ),
    "roboflow": (
        {"train/_annotations.coco.json": ["a.png"], "valid/_annotations.coco.json": ["b.png"], "test/_annotations.coco.json": []},
        ["train/a.png", "valid/b.png"],
    ),
    "up and over": (
        {"annotations/train.json": ["../pictures/a.png"], "annotations/val.json": ["../pictures/b.png"]},
        ["pictures/a.png", "pictures/b.png"],
    ),
    "windows": ({"train.json": ["images\\a.png"], "val.json": ["C:\\ore\\b.png"]}, ["images/a.png", "images/b.png"]),
    "from elsewhere": ({"train.json": ["/home/nobody/x/a.png"], "val.json": ["s3/b.png"]}, ["images/a.png", "s3/b.png"]),
    "prefixed": ({"ore_train.json": ["a.png"], "ore_val.json": ["b.png"]}, ["a.png", "b.png"]),
}


@pytest.mark.parametrize("name", COCO_LAYOUTS)
def test_train_and_val_are_found(tmp_path: Path, name: str) -> None:
    files, images = COCO_LAYOUTS[name]
    for i, image in enumerate(images):
        picture(tmp_path / image, i)
    for file, names in files.items():
        coco(tmp_path / file, *names)
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert data.train.uris == [str(tmp_path / images[0])]
    assert data.val.uris == [str(tmp_path / images[1])]
    assert data.problems == []


@pytest.mark.parametrize(
    "file", ["anything.json", "annotations/instances.json", "_annotations.coco.json", "train/_annotations.coco.json", "train.json"]
)
@pytest.mark.parametrize("named", ["folder", "file"])
def test_one_file_is_split(tmp_path: Path, file: str, named: str) -> None:
    names = [f"{i}.png" for i in range(5)]
    folder = tmp_path / ("train" if file.startswith("train/") else "images")
    for i, name in enumerate(names):
        picture(folder / name, i)
    coco(tmp_path / file, *names)
    data = load_data(DataSpec(uri=str(tmp_path if named == "folder" else tmp_path / file)))
    assert (len(data.train), len(data.val)) == (4, 1)
    assert sorted(data.train.uris + data.val.uris) == [str(folder / name) for name in names]


def test_absolute_names(tmp_path: Path) -> None:
    picture(tmp_path / "far" / "a.png", 0)
    picture(tmp_path / "far" / "b.png", 1)
    coco(tmp_path / "near" / "a.json", str(tmp_path / "far" / "a.png"), "../far/b.png")
    data = load_data(DataSpec(uri=str(tmp_path / "near")))
    assert sorted(data.train.uris + data.val.uris) == [str(tmp_path / "far" / "a.png"), str(tmp_path / "far" / "b.png")]


def test_several_candidates_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        coco(tmp_path / name)
    with pytest.raises(UserError, match=r"several annotation files .*one\.json, two\.json; name one"):
        find_layout(str(tmp_path))


def test_a_named_file_does_not_look_around(tmp_path: Path) -> None:
    coco(tmp_path / "one.json")
    coco(tmp_path / "val.json")
    train, val = find_layout(str(tmp_path / "one.json"))
    assert isinstance(train, CocoPart)
    assert (train.file, val) == ("one.json", None)


def mask(path: Path, ids: int = 2, kind: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((16, 16), dtype=kind)
    for i in range(ids):
        array[4 * i : 4 * i + 3, 2:9] = (i + 1) * (300 if kind is np.uint16 else 1)
    Image.fromarray(array).save(path)


MASK_LAYOUTS = {
    "flat": ("images", "masks", None),
    "labels": ("images", "labels", None),
    "instances": ("images", "instances", None),
    "splits outside": ("{s}/images", "{s}/masks", ("train", "val")),
    "splits inside": ("images/{s}", "masks/{s}", ("train", "val")),
    "valid": ("{s}/images", "{s}/labels", ("train", "valid")),
}


@pytest.mark.parametrize("name", MASK_LAYOUTS)
def test_id_mask_folders(tmp_path: Path, name: str) -> None:
    images, masks, splits = MASK_LAYOUTS[name]
    for n, s in enumerate(splits or ("",)):
        for i in range(3):
            picture(tmp_path / images.format(s=s) / f"x.{i}.jpg", 10 * n + i)
            mask(tmp_path / masks.format(s=s) / f"x.{i}.png", ids=i, kind=np.uint16 if i else np.uint8)
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert data.classes == ("object",)
    assert (len(data.train), len(data.val)) == ((3, 3) if splits else (2, 1))
    counts = sorted(len(part.target(i)) for part in (data.train, data.val) for i in range(len(part)))
    assert counts == ([0, 0, 1, 1, 2, 2] if splits else [0, 1, 2])


def test_id_masks_keep_their_ids_apart(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i}.png", ids=3)
    data = load_data(DataSpec(uri=str(tmp_path), classes="object=particle"))
    assert data.classes == ("particle",)
    assert data.train[0].target.boxes.tolist() == [[2, 0, 9, 3], [2, 4, 9, 7], [2, 8, 9, 11]]


def test_what_can_be_wrong_with_id_masks(tmp_path: Path) -> None:
    for i in range(7):
        picture(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i}.png")
    picture(tmp_path / "images" / "alone.png", 20)
    mask(tmp_path / "masks" / "orphan.png")
    (tmp_path / "masks" / "0.png").write_bytes(b"no")
    picture(tmp_path / "masks" / "1.png", 30)
    Image.fromarray(np.ones((16, 17), dtype=np.uint16)).save(tmp_path / "masks" / "2.png")
    Image.fromarray(np.zeros((16, 17), dtype=np.uint16)).save(tmp_path / "masks" / "3.png")
    found = survey_data(DataSpec(uri=str(tmp_path)))
    assert sorted((p.kind, Path(p.uri).name) for p in found.errors) == [
        ("broken mask", "0.png"),
        ("broken mask", "1.png"),
        ("broken mask", "2.png"),
        ("broken mask", "3.png"),
        ("missing file", "alone.png"),
        ("missing file", "orphan.png"),
    ]
    assert len(found.train) + len(found.val) == 3


@pytest.mark.parametrize("bare", ["train", "val"])
@pytest.mark.parametrize("layout", ["splits outside", "splits inside"])
def test_a_split_without_any_mask_is_not_left_out(tmp_path: Path, layout: str, bare: str) -> None:
    images, masks, _ = MASK_LAYOUTS[layout]
    for s in ("train", "val"):
        for i in range(2):
            picture(tmp_path / images.format(s=s) / f"{i}.png", i + 10 * (s == "val"))
            if s != bare:
                mask(tmp_path / masks.format(s=s) / f"{i}.png")
    found = survey_data(DataSpec(uri=str(tmp_path)))
    folder = tmp_path / images.format(s=bare)
    assert [(p.kind, p.uri) for p in found.errors] == [("missing file", str(folder / f"{i}.png")) for i in range(2)]
    assert (len(found.train), len(found.val)) == ((0, 2) if bare == "train" else (2, 0))


def test_a_validation_folder_inside_the_images_is_not_trained_on(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "val/c.png")):
        picture(tmp_path / "images" / name, i)
        mask(tmp_path / "masks" / name)
    found = survey_data(DataSpec(uri=str(tmp_path)))
    assert found.problems == []
    assert [sorted(Path(r.uri).name for r in part) for part in (found.train, found.val)] == [["a.png", "b.png"], ["c.png"]]


def test_images_alone_are_no_layout(tmp_path: Path) -> None:
    for name in ("train/images/a.png", "val/images/b.png"):
        picture(tmp_path / name, 0)
    with pytest.raises(UserError, match="no annotation file under"):
        find_layout(str(tmp_path))


def test_masks_of_other_kinds(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.png", i)
        mask(tmp_path / "masks" / f"{i}.png", ids=2)
    mask(tmp_path / "masks" / "1.png", ids=2, kind=np.uint8)
    with Image.open(tmp_path / "masks" / "1.png") as grey:
        indexed = Image.frombytes("P", grey.size, grey.tobytes())
    indexed.putpalette([0, 0, 0, 255, 0, 0, 255, 0, 0])  # two ids in one colour
    indexed.save(tmp_path / "masks" / "1.png")
    Image.fromarray(np.full((16, 16), 255, dtype=np.uint8)).save(tmp_path / "masks" / "2.png")
    (tmp_path / "masks" / "3.png").unlink()
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "masks" / "3.jpg")
    found = survey_data(DataSpec(uri=str(tmp_path)))
    assert sorted((p.severity, p.kind, Path(p.uri).name) for p in found.problems) == [
        ("error", "broken mask", "3.jpg"),
        ("warning", "black and white", "2.png"),
    ]
    assert {Path(r.uri).name: len(r.labels) for r in [*found.train, *found.val]} == {"0.png": 2, "1.png": 2, "2.png": 1}


def test_two_images_for_one_mask_are_both_read(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        picture(tmp_path / "images" / name, len(name) + ord(name[0]) + ord(name[2]))
    mask(tmp_path / "masks" / "a.png")
    mask(tmp_path / "masks" / "b.png")
    train, _ = find_layout(str(tmp_path))
    assert isinstance(train, MaskPart)
    assert [image for image, _ in train.pairs] == ["images/a.jpg", "images/a.png", "images/b.png"]
    assert survey_data(DataSpec(uri=str(tmp_path))).errors == []


def test_emps(shared: Path) -> None:
    data = load_data(DataSpec(uri=str(shared / "data" / "emps")))
    assert (len(data.train), len(data.val)) == (48, 12)
    sample = data.train[0]
    reference = np.asarray(Image.open(sample.uri.replace("/images/", "/instances/")))
    ids = [i for i in np.unique(reference) if i]
    assert len(sample.target) == len(ids)
    for mask, ident in zip(sample.target.masks, ids, strict=True):
        np.testing.assert_array_equal(mask.numpy(), reference == ident)


def test_nothing_there(tmp_path: Path) -> None:
    for uri in (tmp_path / "nowhere", tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(UserError, match="no data at"):
            find_layout(str(uri))


def test_a_folder_without_annotations_lists_the_layouts(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    with pytest.raises(UserError, match=r"no annotation file under .* \(1 files\); known layouts: train\.json") as caught:
        find_layout(str(tmp_path))
    assert "_annotations.coco.json" in str(caught.value)
    assert "masks/" in str(caught.value)
