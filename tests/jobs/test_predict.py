"""jobs/predict.py on Ray Data: files of all kinds in, masks, COCO, overlays and measurements out; broken ones named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import exit_code
from PIL import Image
from pycocotools.coco import COCO

from stratum import storage
from stratum_models.catalog import build_model
from stratum_models.interface import InstancePrediction
from stratum_models.package import Manifest, load_package, save_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    manifest = Manifest(preset="losnet_debug", classes=("ore", "slag"), num_classes=2, task="instance", score_threshold=0.05)
    save_package(tmp_path / "package", build_model("losnet_debug", num_classes=2), manifest)
    return tmp_path / "package"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five good images of different kinds and sizes, in folders, and two that are broken."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    (folder / "belt").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 255, (96, 64), dtype=np.uint8)).save(folder / "a.tif")  # the same name, another ending
    Image.fromarray(rng.integers(0, 65535, (64, 64), dtype=np.uint16)).save(folder / "belt" / "deep.png")
    Image.fromarray(rng.integers(0, 255, (80, 80, 4), dtype=np.uint8)).save(folder / "belt" / "alpha.png")
    Image.fromarray(rng.integers(0, 255, (64, 72, 3), dtype=np.uint8)).save(folder / "belt" / "photo.jpg")
    (folder / "empty.png").write_bytes(b"")
    (folder / "belt" / "cut.jpg").write_bytes((folder / "belt" / "photo.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_with_broken_images(
    ray_local: None, package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images / "found"  # below the images: a second run must not take results for images
    argv = ("--package", str(package), "--data", str(images), "--storage", str(out), "--mm-per-px", "0.5", "--batch-size", "2")
    for _ in range(2):
        assert exit_code("predict", *argv) == 1
        said = capsys.readouterr().out
        assert "7/7 images" in said
        assert "2 images broken" in said
        assert said.count("broken: ") == 2
        assert str(images / "empty.png") in said
        assert str(images / "belt" / "cut.jpg") in said
    names = ["a.png", "a.tif", "belt/alpha", "belt/deep", "belt/photo"]
    assert sorted(storage.relative(uri, str(out / "masks")) for uri in storage.list_files(str(out / "masks"))) == [
        f"{n}.png" for n in names
    ]
    assert len(storage.list_files(str(out / "overlays"))) == 5
    check_documents(package, images, out)


def check_documents(package: Path, images: Path, out: Path) -> None:
    """The files agree with each other and with the model, called here by itself."""
    document = json.loads((out / "predictions.json").read_text())
    assert [category["name"] for category in document["categories"]] == ["ore", "slag"]
    coco = COCO(str(out / "predictions.json"))
    image = next(one for one in document["images"] if one["file_name"].endswith("photo.jpg"))
    assert (image["height"], image["width"]) == (64, 72)
    masks = [coco.annToMask(one) for one in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))]
    pixels = torch.from_numpy(np.array(Image.open(images / "belt" / "photo.jpg"))).permute(2, 0, 1).float() / 255
    expected = load_package(package).predict([pixels])[0]
    assert isinstance(expected, InstancePrediction)
    seen = int(expected.masks.any(dim=(1, 2)).sum())
    assert abs(len(masks) - seen) <= 1  # the job's model is folded: a score at the threshold may fall to the other side
    ids = np.array(Image.open(out / "masks" / "belt" / "photo.png"))
    assert ids.shape == (64, 72)
    assert np.array_equal(ids > 0, np.any(masks, axis=0) if masks else np.zeros_like(ids, dtype=bool))
    for annotation in document["annotations"]:
        assert annotation["area"] == int(coco.annToMask(annotation).sum())
    with open(out / "measurements.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(document["annotations"]) > 0
    assert all(float(row["area_mm2"]) == pytest.approx(float(row["area_px"]) * 0.25) for row in rows)
    summary = json.loads((out / "sizes.json").read_text())
    assert (summary["images"], summary["broken"], summary["instances"]) == (5, 2, len(document["annotations"]))
    assert summary["sizes"]["unit"] == "mm"


def test_a_bucket(ray_local: None, s3_env: object, package: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = s3_env.bucket()  # type: ignore[attr-defined]
    storage.upload_tree(package, f"s3://{bucket}/package")
    for name in ("a.png", "belt/photo.jpg"):
        storage.write_bytes(f"s3://{bucket}/images/{name}", (images / name).read_bytes())
    places = ("--package", f"s3://{bucket}/package", "--data", f"s3://{bucket}/images", "--storage", f"s3://{bucket}/found")
    argv = (*places, "--no-overlays", "--resume")
    assert exit_code("predict", *argv) == 0
    found = [storage.relative(uri, f"s3://{bucket}/found") for uri in storage.list_files(f"s3://{bucket}/found")]
    records = ["records/a.json", "records/belt/photo.json", "records/run.json"]
    assert found == ["masks/a.png", "masks/belt/photo.png", "measurements.csv", "predictions.json", *records, "sizes.json", "sizes.png"]
    before = storage.read_json(f"s3://{bucket}/found/predictions.json")
    assert len(before["images"]) == 2
    capsys.readouterr()
    assert exit_code("predict", *argv) == 0
    assert "2/2 images were done before" in capsys.readouterr().out
    assert storage.read_json(f"s3://{bucket}/found/predictions.json") == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--package": "{tmp}/nowhere"}, "nowhere"),
        ({"--data": "{tmp}/nowhere"}, "nowhere"),
        ({"--data": "{tmp}/package"}, "no images there"),
        ({"--score-threshold": "2"}, "between 0 and 1"),
        ({"--mm-per-px": "0"}, "mm per pixel"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    package: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], says: str
) -> None:
    flags = {"--package": str(package), "--data": str(images), "--storage": str(tmp_path / "out"), **change}
    argv = [text.format(tmp=tmp_path) for pair in flags.items() for text in pair]
    assert exit_code("predict", *argv) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(
    package: Path, images: Path, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("predict", "--package", str(package), "--data", str(images), "--storage", str(tmp_path / "out"), "--gpu") == 2
    assert "error: --gpu: this machine has no usable GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
