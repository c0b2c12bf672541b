"""Reading class masks of every layout, against masks drawn by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stratum import storage
from stratum.data.class_table import class_table
from stratum.data.classes import parse_classes
from stratum.data.samples import SampleSet
from stratum.data.source import Dataset, DataSpec, load_data, survey_data
from stratum.data.voc import CLASSES as VOC_CLASSES
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget, SemanticTarget

COLOURS = {"background": [0, 0, 0], "rock": [200, 30, 0], "dust": [0, 0, 7], "ignore": [255, 255, 255]}


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def values(seed: int = 0, top: int = 3) -> np.ndarray:
    """A mask of 12x16 with every value below ``top``, and some pixels to ignore."""
    mask = np.random.default_rng(seed).integers(0, top, (12, 16), dtype=np.uint8)
    mask.reshape(-1)[:top] = np.arange(top)
    mask[-1, :2] = 255
    return mask


def indexed(path: Path, mask: np.ndarray) -> None:
    """A palette PNG whose colours say nothing about the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.astype(np.uint8).tobytes())
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)


def grey(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def coloured(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lookup = np.zeros((256, 3), dtype=np.uint8)
    for i, colour in enumerate([*list(COLOURS.values())[:3]]):
        lookup[i] = colour
    lookup[255] = COLOURS["ignore"]
    Image.fromarray(lookup[mask]).save(path)


def masks_of(data: Dataset) -> dict[str, np.ndarray]:
    found = {}
    for part in (data.train, data.val):
        for i in range(len(part)):
            sample = part[i]
            assert isinstance(sample.target, SemanticTarget)
            assert sample.target.mask.dtype == torch.int64
            assert sample.target.mask.shape == sample.image.shape[1:]
            found[Path(sample.uri).stem] = sample.target.mask.numpy()
    return found


NAMED = ["background", "rock", "dust"]
WRITERS = {
    "grey": (grey, "classes.json", NAMED),
    "palette": (indexed, "classes.json", NAMED),
    "object": (grey, "classes.json", {"dust": 2, "background": 0, "rock": 1}),
    "sixteen bits": (lambda path, mask: grey(path, mask.astype(np.uint16)), "classes.json", NAMED),
    "grey as RGB": (lambda path, mask: grey(path, np.dstack([mask] * 3)), "classes.json", NAMED),
    "colours": (coloured, "palette.json", COLOURS),
    "colours in classes.json": (coloured, "classes.json", COLOURS),
    "labelmap": (coloured, "labelmap.txt", "".join(f"{n}:{','.join(map(str, c))}::\n" for n, c in COLOURS.items())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_masks_in_folders(tmp_path: Path, name: str) -> None:
    write, file, content = WRITERS[name]
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    for i in range(4):
        part = "train" if i < 3 else "val"
        picture(tmp_path / part / "images" / f"{i}.jpg", i)
        write(tmp_path / part / "masks" / f"{i}.png", values(i))
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert (data.task, data.classes, data.problems) == ("semantic", tuple(NAMED), [])
    assert (len(data.train), len(data.val)) == (3, 1)
    for stem, mask in masks_of(data).items():
        np.testing.assert_array_equal(mask, values(int(stem)))
    assert load_data(DataSpec(uri=str(tmp_path / "train"))).classes == tuple(NAMED)  # named one folder up


def test_every_writer_has_the_same_fingerprint_of_labels(tmp_path: Path) -> None:
    prints = set()
    for name in ("grey", "palette", "colours"):
        write, file, content = WRITERS[name]
        for i in range(3):
            picture(tmp_path / name / "images" / f"{i}.png", i)
            write(tmp_path / name / "masks" / f"{i}.png", values(i))
        (tmp_path / name / file).write_text(json.dumps(content))
        prints.add(load_data(DataSpec(uri=str(tmp_path / name))).fingerprint)
    assert len(prints) == 1
    changed = values(0)
    changed[5, 5] = 1 if changed[5, 5] != 1 else 2
    indexed(tmp_path / "palette" / "masks" / "0.png", changed)
    assert load_data(DataSpec(uri=str(tmp_path / "palette"))).fingerprint not in prints


def folder(path: Path, names: object = NAMED, count: int = 3) -> str:
    for i in range(count):
        picture(path / "images" / f"{i}.png", i)
        grey(path / "masks" / f"{i}.png", values(i))
    if names is not None:
        (path / "classes.json").write_text(json.dumps(names))
    return str(path)


@pytest.mark.parametrize(
    ("classes", "names", "labels"),
    [
        ("", ("background", "rock", "dust"), (0, 1, 2)),
        ("rock", ("background", "rock"), (0, 1, 0)),
        ("dust,rock", ("background", "dust", "rock"), (0, 2, 1)),
        ("rock+dust=stuff", ("background", "stuff"), (0, 1, 1)),
        ("rock,background", ("rock", "background"), (1, 0, 1)),
        ("background+dust=rest,rock", ("rest", "rock"), (0, 1, 0)),
        ("background,rock,dust=ignore", ("background", "rock"), (0, 1, 255)),
    ],
)
def test_classes_are_chosen_and_the_rest_is_background(tmp_path: Path, classes: str, names: Sequence[str], labels: Sequence[int]) -> None:
    data = load_data(DataSpec(uri=folder(tmp_path), classes=classes))
    assert data.classes == tuple(names)
    lookup = np.array([*labels, *[255] * (256 - len(labels))])
    for stem, mask in masks_of(data).items():
        np.testing.assert_array_equal(mask, lookup[values(int(stem))])


def test_unknown_classes_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'stone'.*known: background, rock, dust"):
        load_data(DataSpec(uri=folder(tmp_path), classes="stone"))
    with pytest.raises(UserError, match="300 classes are too many"):
        class_table([str(i) for i in range(300)], parse_classes(""))


def test_instance_ids_and_class_masks_are_told_apart(tmp_path: Path) -> None:
    assert load_data(DataSpec(uri=folder(tmp_path / "a"))).task == "semantic"
    doubtful = load_data(DataSpec(uri=folder(tmp_path / "b", None)))
    assert (doubtful.task, [p.kind for p in doubtful.problems]) == ("instance", ["ids or classes"])
    assert load_data(DataSpec(uri=folder(tmp_path / "a"), task="instance")).task == "instance"
    unnamed = load_data(DataSpec(uri=str(tmp_path / "b"), task="semantic"))
    assert (unnamed.task, unnamed.classes) == ("semantic", ("class_0", "class_1", "class_2"))
    np.testing.assert_array_equal(masks_of(unnamed)["1"], values(1))
    (tmp_path / "a" / "masks").rename(tmp_path / "a" / "instances")
    found = load_data(DataSpec(uri=str(tmp_path / "a")))
    assert isinstance(found.train[0].target, InstanceTarget)
    ids = [i for i in np.unique(values(int(Path(found.train.uris[0]).stem))) if i]
    assert len(found.train[0].target) == len(ids)


def voc(path: Path, lists: dict[str, list[str]] | None = None, count: int = 5) -> str:
    for i in range(count):
        picture(path / "JPEGImages" / f"2007_{i}.jpg", i)
        if i < count - 1:  # VOC has many images that nobody labelled
            indexed(path / "SegmentationClass" / f"2007_{i}.png", values(i, 21))
    for name, stems in (lists or {}).items():
        file = path / "ImageSets" / "Segmentation" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{stem}\n" for stem in stems))
    return str(path)


@pytest.mark.parametrize("top", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_pascal_voc(tmp_path: Path, top: str) -> None:
    voc(tmp_path / top, {"train": ["2007_2", "2007_0"], "val": ["2007_3"], "trainval": ["2007_0"]})
    data = load_data(DataSpec(uri=str(tmp_path)))
    assert (data.task, data.classes) == ("semantic", VOC_CLASSES)
    assert [Path(u).stem for u in data.train.uris] == ["2007_2", "2007_0"]
    assert [Path(u).stem for u in data.val.uris] == ["2007_3"]
    for stem, mask in masks_of(data).items():
        np.testing.assert_array_equal(mask, values(int(stem[-1]), 21))


def test_pascal_voc_without_lists_is_split_and_may_name_its_own_classes(tmp_path: Path) -> None:
    uri = voc(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps([f"c{i}" for i in range(21)]))
    data = load_data(DataSpec(uri=uri))
    assert len(data.train) + len(data.val) == 4
    assert data.classes[20] == "c20"
    assert [p.kind for p in data.problems] == []


def test_pascal_voc_names_what_is_missing(tmp_path: Path) -> None:
    uri = voc(tmp_path, {"train": ["2007_0", "2007_4", "gone"], "val": ["2007_1"]})
    found = survey_data(DataSpec(uri=uri)).errors
    assert sorted((p.kind, Path(p.uri).name) for p in found) == [("missing file", "2007_4.jpg"), ("missing file", "gone.jpg")]
    voc(tmp_path / "VOC2007")
    with pytest.raises(UserError, match="several folders with SegmentationClass"):
        load_data(DataSpec(uri=uri))
    with pytest.raises(UserError, match="cannot be read as instances"):
        load_data(DataSpec(uri=str(tmp_path / "VOC2007"), task="instance"))


@pytest.mark.parametrize(("name", "sizes", "classes"), [("sstem", (16, 4), 5), ("neu_seg", (700, 200), 4), ("drive", (16, 4), 2)])
def test_real_sets(shared: Path, name: str, sizes: tuple[int, int], classes: int) -> None:
    data = load_data(DataSpec(uri=str(shared / "data" / name)))
    assert (data.task, len(data.train), len(data.val), len(data.classes)) == ("semantic", *sizes, classes)
    for sample in (data.train[0], data.val[-1]):
        own = Path(sample.uri.replace("/images/", "/masks/")).with_suffix(".png")
        np.testing.assert_array_equal(sample.target.mask.numpy(), np.asarray(Image.open(own)))


def test_masks_drawn_on_the_stored_pixels_of_a_turned_photograph(tmp_path: Path) -> None:
    uri = folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "images" / "1.png") as image:
        image.save(tmp_path / "images" / "1.png", exif=exif)
    data = load_data(DataSpec(uri=uri))
    assert [(p.severity, p.kind, Path(p.uri).name) for p in data.problems] == [("warning", "not rotated", "1.png")]
    np.testing.assert_array_equal(masks_of(data)["1"], values(1))
    turned = np.rot90(values(1), -1)
    grey(tmp_path / "masks" / "1.png", turned)
    data = load_data(DataSpec(uri=uri))
    assert data.problems == []
    np.testing.assert_array_equal(masks_of(data)["1"], turned)


def test_class_masks_on_s3(tmp_path: Path, s3_env: Any) -> None:
    uri = f"s3://{s3_env.bucket()}/sets/drill"
    storage.upload_tree(Path(folder(tmp_path / "a")), uri)
    here, there = load_data(DataSpec(uri=str(tmp_path / "a"))), load_data(DataSpec(uri=uri, tile=0))
    assert (there.task, there.classes, there.fingerprint) == ("semantic", here.classes, here.fingerprint)
    storage.upload_tree(Path(voc(tmp_path / "voc", {"train": ["2007_0"], "val": ["2007_1"]})), f"{uri}-voc")
    assert load_data(DataSpec(uri=f"{uri}-voc")).classes == VOC_CLASSES
    elsewhere = SampleSet([replace(r, path=None) for r in load_data(DataSpec(uri=uri, tile=32)).train.records])
    assert elsewhere[0].uri.startswith(uri)
