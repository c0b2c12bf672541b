"""What is wrong with class masks is said in one line that names the file, before anything is trained."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from stratum.data.check import make_report, render, write_sheet
from stratum.data.source import DataSpec, load_data, survey_data
from stratum_models.errors import UserError

Spoil = Callable[[Path], None]


def folder(path: Path, naming: dict[str, object] | None = None) -> str:
    rng = np.random.default_rng(0)
    for i in range(4):
        for name in ("images", "masks"):
            (path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path / "images" / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (12, 16), dtype=np.uint8)).save(path / "masks" / f"{i}.png")
    for file, content in (naming or {"classes.json": ["background", "rock", "dust"]}).items():
        (path / file).write_text(json.dumps(content))
    return str(path)


def save(array: np.ndarray) -> Spoil:
    return lambda path: Image.fromarray(array).save(path)


SPOILED: dict[str, tuple[Spoil, str, str]] = {
    "another size": (save(np.zeros((16, 12), np.uint8)), "wrong size", r"the mask has 12x16 pixels, its image .*/1\.png 16x12"),
    "an index too high": (
        save(np.full((12, 16), 3, np.uint8)),
        "unknown class",
        r"the class index 3 is not in the list \(0 background, 1 rock",
    ),
    "several": (
        save(np.arange(192, dtype=np.uint8).reshape(12, 16)),
        "unknown class",
        r"the class indices 3, 4, 5, 6, 7 \.\.\. are not in",
    ),
    "instance ids": (save(np.full((12, 16), 900, np.uint16)), "unknown class", "instance ids are read with the task instance"),
    "colours": (save(np.full((12, 16, 3), (1, 2, 3), np.uint8)), "broken mask", r"a colour mask; say .* in palette\.json"),
    "floats": (lambda path: tifffile.imwrite(path, np.zeros((12, 16), np.float32)), "broken mask", "floating-point pixels"),
    "jpeg": (lambda path: Image.new("L", (16, 12)).save(path, "JPEG"), "broken mask", "JPEG changes the values"),
    "broken": (lambda path: path.write_bytes(b"no") and None, "broken mask", "no known image format"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:50]) and None, "broken mask", "broken image"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_mask_is_named(tmp_path: Path, name: str) -> None:
    spoil, kind, detail = SPOILED[name]
    uri = folder(tmp_path)
    spoil(tmp_path / "masks" / "1.png")
    found = survey_data(DataSpec(uri=uri))
    assert [(p.kind, p.uri) for p in found.errors] == [(kind, str(tmp_path / "masks" / "1.png"))]
    assert re.search(detail, found.errors[0].detail), found.errors[0].detail
    assert "\n" not in str(found.errors[0])
    with pytest.raises(UserError, match=rf"{kind}: .*masks/1\.png"):
        load_data(DataSpec(uri=uri))
    assert len(load_data(DataSpec(uri=uri, skip_broken=True)).train) == 2


def test_a_colour_without_a_class(tmp_path: Path) -> None:
    uri = folder(tmp_path, {"palette.json": {"background": [0, 0, 0], "rock": [1, 1, 1], "dust": [2, 2, 2]}})
    load_data(DataSpec(uri=uri))
    mask = np.zeros((12, 16, 3), dtype=np.uint8)
    mask[4, 7] = (9, 8, 7)
    Image.fromarray(mask).save(tmp_path / "masks" / "2.png")
    Image.fromarray(np.zeros((12, 16), dtype=np.uint16)).save(tmp_path / "masks" / "3.png")
    found = {Path(p.uri).name: p for p in survey_data(DataSpec(uri=uri)).errors}
    expected = "1 pixels have colours without a class, such as [9, 8, 7] at x=7, y=4"
    assert found["2.png"].detail.startswith(expected)
    assert str(tmp_path / "palette.json") in found["2.png"].detail
    assert "16 bits has no colours" in found["3.png"].detail


def test_missing_images_and_masks(tmp_path: Path) -> None:
    uri = folder(tmp_path)
    (tmp_path / "masks" / "1.png").rename(tmp_path / "masks" / "9.png")
    found = survey_data(DataSpec(uri=uri)).errors
    assert [(p.kind, Path(p.uri).name, p.detail) for p in found] == [
        ("missing file", "1.png", "an image without a class mask of the same name"),
        ("missing file", "9.png", "a class mask without an image of the same name"),
    ]


def test_an_empty_class_and_a_single_one(tmp_path: Path) -> None:
    uri = folder(tmp_path, {"classes.json": ["background", "rock", "dust", "fog"]})
    found = load_data(DataSpec(uri=uri)).problems
    assert [(p.severity, p.kind, p.uri, p.detail) for p in found] == [
        ("warning", "empty class", uri, "no pixel of 'fog' in the training part")
    ]
    for i in range(4):
        save(np.full((12, 16), 255 if i % 2 else 0, np.uint8))(tmp_path / "masks" / f"{i}.png")
    survey = survey_data(DataSpec(uri=uri))
    assert [p.kind for p in survey.errors] == ["one class"]
    assert sum(p.kind == "black and white" for p in survey.problems) == 2
    with pytest.raises(UserError, match="fewer than two classes"):
        load_data(DataSpec(uri=uri))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.json", "[]", "names no classes"),
        ("classes.json", '["a", "a"]', "names a class or an index twice"),
        ("classes.json", '{"a": 0, "b": 0}', "names a class or an index twice"),
        ("classes.json", '{"a": 0, "b": 255}', "names no classes"),
        ("classes.json", '{"a": 0, "b": [1, 2, 3]}', "names no classes"),
        ("classes.json", "{", "JSON"),
        ("classes.json", json.dumps([f"c{i}" for i in range(256)]), "names 256 classes, but a mask has room for 255"),
        ("palette.json", '{"a": [0, 0, 0], "b": [0, 0, 0]}', r"gives the colour \[0, 0, 0\] to both 'a' and 'b'"),
        ("palette.json", '{"a": [0, 0, 256]}', "names no classes"),
        ("labelmap.txt", "a:1,2\n", "not of the form name:red,green,blue"),
        ("labelmap.txt", "# nothing\n", "names no classes"),
    ],
)
def test_files_that_name_classes_are_checked(tmp_path: Path, file: str, content: str, message: str) -> None:
    uri = folder(tmp_path, {})
    for other in ("classes.json", "palette.json"):
        (tmp_path / other).unlink(missing_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_data(DataSpec(uri=uri))
    assert file in str(caught.value)


def test_gaps_between_indices_are_no_classes(tmp_path: Path) -> None:
    uri = folder(tmp_path, {"classes.json": {"background": 0, "rock": 2}})
    found = survey_data(DataSpec(uri=uri)).errors
    assert [p.detail for p in found] == ["the class index 1 is not in the list (0 background, 2 rock)"] * 4


def test_labelme_problems(tmp_path: Path) -> None:
    def write(name: str, content: Any) -> None:
        (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))

    box = {"label": "rock", "shape_type": "rectangle", "points": [[1, 1], [5, 5]]}
    for i in range(8):
        Image.fromarray(np.full((12, 16, 3), 20 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
        write(str(i), {"shapes": [box], "imageHeight": 12, "imageWidth": 16})
    (tmp_path / "1.png").unlink()
    write("2", "{")
    write("3", {"shapes": [{"points": []}]})
    write("4", {"shapes": [{**box, "points": [[1, 1]]}, {**box, "points": [[1, "x"], [2, 2]]}, {**box, "points": 3}]})
    write("5", {"shapes": [{**box, "label": "fog"}, {**box, "shape_type": "line"}]})
    write("6", {"shapes": [box], "imageHeight": 16, "imageWidth": 16})
    (tmp_path / "classes.json").write_text('["background", "rock"]')
    found = survey_data(DataSpec(uri=str(tmp_path)))
    kinds = [(p.severity, p.kind, Path(p.uri).name) for p in found.problems]
    assert sorted(kinds) == [
        ("error", "broken label", "4.json"),
        ("error", "broken label", "4.json"),
        ("error", "broken label", "4.json"),
        ("error", "missing file", "1.json"),
        ("error", "unknown category", "5.json"),
        ("error", "unreadable file", "2.json"),
        ("error", "unreadable file", "3.json"),
        ("error", "wrong size", "6.png"),
        ("warning", "shape left out", "5.json"),
    ]


def test_the_report_counts_pixels(tmp_path: Path) -> None:
    uri = folder(tmp_path)
    survey = survey_data(DataSpec(uri=uri))
    report = make_report(uri, survey)
    masks = [np.asarray(Image.open(r.uri.replace("images", "masks"))) for r in survey.train]
    expected = [(name, int(sum((m == i).sum() for m in masks))) for i, name in enumerate(("background", "rock", "dust"))]
    assert report.train.classes == expected
    share = expected[1][1] / (12 * 16 * len(masks))
    assert f"rock ({share:.2%})" in render(report)
    assert json.loads(json.dumps(report.to_json()))["task"] == "semantic"
    assert write_sheet(survey, tmp_path / "sheet.png") is not None
