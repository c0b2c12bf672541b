"""The jobs on class masks: trained, measured and used with the same commands as instances."""

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from in_process import exit_code, load_job
from mlflow import MlflowClient
from PIL import Image

from stratum import storage
from stratum.data.frequencies import class_weights
from stratum.data.sample import Sample
from stratum.data.source import DataSpec, load_data
from stratum.data.tiles import tiles
from stratum.data.transforms import TrainTransform
from stratum.inference.batch import list_work, read
from stratum.inference.masks import MaskWriter
from stratum.inference.options import with_options
from stratum.inference.work import BatchSpec, Found, Work
from stratum.tracking import tracking_uri
from stratum_models.catalog import build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import SemanticPrediction, SemanticTarget
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import Manifest, load_package, save_package

COAL = "synthetic://coal?images=8&size=64&seed=0"
CELLS = "synthetic://cells?images=8&size=64&seed=0"
FOLD = ("--folds", "4", "--fold", "1", "--tile", "32")
TINY = ("--augment", "none", "--batch", "4", "--epochs", "2", "--evaluate-every", "1", "--workers", "0", "--cost-size", "64x64")


@pytest.fixture(scope="module")
def coal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of FM-HRNet on coal."""
    folder = tmp_path_factory.mktemp("coal")
    flags = ("--data", COAL, "--model", "fm_hrnet_debug", "--size", "64", "--set", "loss=ce+dice", "--experiment", "coal")
    assert exit_code("train", *flags, *TINY, "--storage", str(folder), "--name", "run") == 0
    return folder / "run" / "package"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of ARSM on tiles of the second of four folds of cells, with class weights."""
    folder = tmp_path_factory.mktemp("cells")
    flags = ("--data", CELLS, *FOLD, "--model", "hrnet_arsm_debug", "--size", "32", "--class-weights", "median", "--experiment", "cells")
    schedule = ("--set", "temperature=1.0", "temperature_end=0.1")
    assert exit_code("train", *flags, *schedule, *TINY, "--storage", str(folder), "--name", "run") == 0
    return folder / "run" / "package"


def test_training_leaves_a_package_with_the_figures_of_classes(coal: Path) -> None:
    manifest = load_package(coal).manifest
    classes = load_data(DataSpec(uri=COAL)).classes
    assert (manifest.task, manifest.classes, manifest.score_threshold, manifest.tile) == ("semantic", classes, 0.0, 0)
    assert manifest.overrides == {"loss": "ce+dice", "input_short": 64}
    named = {f"val/{name}" for name in ("miou", "mpa", "pa", "dice", "boundary_f", *(f"iou_{label}" for label in classes))}
    assert named <= manifest.metrics.keys()
    assert {"cost/params", "cost/macs", "cost/latency_ms", "cost/infer_memory_mb"} <= manifest.cost.keys()
    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("coal")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["val/miou"] == pytest.approx(manifest.metrics["val/miou"])
    assert len(client.get_metric_history(found.info.run_id, "val/miou")) >= 2
    pictures = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "evaluation")}
    assert pictures == {f"evaluation/{name}.png" for name in ("training", "confusion", "iou", "overlays")}


def test_evaluation_is_that_of_a_slow_loop(coal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert exit_code("evaluate", "--package", str(coal), "--data", COAL, "--storage", str(out), "--pictures", "1", "--batch-size", "2") == 0
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "share of coal" in said
    assert "mean IoU" in said
    assert sorted(path.name for path in out.iterdir()) == ["confusion.png", "iou.png", "metrics.json", "overlays.png"]
    record = json.loads((out / "metrics.json").read_text())
    matrix = slow_matrix(coal)
    assert np.abs(np.array(record["confusion"]) - matrix).sum() <= 4  # two images in one batch: a pixel may fall to the other side
    iou = [matrix[i, i] / (matrix[i].sum() + matrix[:, i].sum() - matrix[i, i]) for i in range(len(matrix)) if matrix[i].sum()]
    assert record["metrics"]["val/miou"] == pytest.approx(sum(iou) / len(iou), abs=1e-3)
    assert record["metrics"]["val/pa"] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-3)
    assert record["metrics"]["val/miou"] == pytest.approx(load_package(coal).manifest.metrics["val/miou"], abs=5e-3)


def slow_matrix(package: Path) -> np.ndarray:
    """Labelled against predicted, pixel by pixel and image by image."""
    loaded, data = load_package(package), load_data(DataSpec(uri=COAL))
    model = prepare_for_inference(loaded.model)
    matrix = np.zeros((len(data.classes), len(data.classes)), dtype=int)
    for sample in (data.val[index] for index in range(len(data.val))):
        (prediction,) = model.predict([sample.image.float() / 255])
        assert isinstance(prediction, SemanticPrediction)
        assert isinstance(sample.target, SemanticTarget)
        for true, scores in zip(sample.target.mask.flatten().tolist(), prediction.probabilities.flatten(1).T.tolist(), strict=True):
            if true != 255:
                matrix[true, scores.index(max(scores))] += 1
    return matrix


def test_a_fold_of_tiles_with_class_weights(cells: Path) -> None:
    loaded = load_package(cells)  # built from what the manifest says, the counted weights included
    data = load_data(DataSpec(uri=CELLS, folds=4, fold=1, tile=32))
    weights = class_weights(data.train.records, len(data.classes), "median")
    assert loaded.manifest.overrides["class_weights"] == pytest.approx(weights)
    assert loaded.manifest.data_fingerprint == data.fingerprint
    assert (len(data.train), len(data.val), loaded.manifest.tile) == (24, 8, 32)
    epoch = json.loads((cells.parent / "checkpoints" / "checkpoints.json").read_text())["best"].split("-")[1]
    temperature = loaded.model.state_dict()["network.selection.temperature"].item()
    assert temperature == pytest.approx(0.1 ** (int(epoch) / 2))  # 1 at the start, 0.1 after both epochs: no average of them


@pytest.mark.parametrize(("size", "crop"), [(128, 128), (None, 256)])
def test_tiles_in_training_and_windows_in_prediction_have_one_scale(size: int | None, crop: int) -> None:
    train = load_job("train")
    spec = train.run_spec(train.Args(data=CELLS, model="hrnet_debug", tile=256, size=size, scale=(1.0, 1.0)))
    config = resolve_config(spec.model.preset, spec.model.overrides)
    assert spec.augment.crop == crop
    assert config.scaled(256, 256) == (crop, crop)  # a window
    whole = replace(spec.augment, crop=None, mosaic=0.0, rotate90=False)
    for _, _, height, width in tiles(565, 300, 256):  # none of them of 256 pixels
        sample = Sample(
            image=torch.zeros(3, height, width, dtype=torch.uint8), target=SemanticTarget(mask=torch.zeros(height, width).long()), uri="x"
        )
        assert tuple(TrainTransform(whole, 0)(sample).image.shape[1:]) == config.scaled(height, width)


def test_what_the_gate_decides(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--package", str(cells), "--data", CELLS, "--storage", str(tmp_path), "--pictures", "2", "--gates", "1", "--set", "samples=3")
    assert exit_code("evaluate", *flags, *FOLD) == 0
    assert "warning" not in capsys.readouterr().out
    assert {"gate_0.png", "gate_shares.png"} <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert [record[name] for name in ("options", "window", "tile", "folds", "fold")] == [{"samples": "3"}, 32, 32, 4, 1]
    predicted = np.array(record["confusion"]).sum(axis=0)
    for name, pixels in zip(record["classes"], predicted, strict=True):
        shares = record["gate_shares"][name]
        assert list(shares) == ["1/4", "1/8", "1/16", "1/32"]
        assert sum(shares.values()) == pytest.approx(1.0 if pixels else 0.0)
    assert record["metrics"]["val/miou"] == pytest.approx(load_package(cells).manifest.metrics["val/miou"], abs=0.02)
    assert exit_code("evaluate", *flags, *FOLD[:4]) == 2  # whole images, in windows of the tiles' size
    assert "larger than its windows of 32 pixels: cut it (evaluate.py does with --tile 32)" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["temperature", "temperature_end"])
def test_another_temperature_is_that_of_the_prediction(cells: Path, option: str) -> None:
    loaded, image = load_package(cells), [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))]
    hot = with_options(loaded, {option: "50"})
    assert hot.model.state_dict()["network.selection.temperature"] == 50
    assert not torch.equal(hot.model.predict(image)[0].probabilities, loaded.model.predict(image)[0].probabilities)  # type: ignore[union-attr]


def test_the_gate_on_images_without_labels(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(package: Path, spec: BatchSpec, works: list[Work], **_: object) -> list[Found]:
        loaded = load_package(package)
        return MaskWriter(spec, loaded.manifest).find(loaded.model, works, [read(work.uri, None) for work in works])

    predict = load_job("predict")  # without Ray, which is not what this is about
    for name, plain in (("predict_all", here), ("ray_cluster", nullcontext), ("check_cluster", lambda spec: None)):
        monkeypatch.setattr(predict, name, plain)
    flags = ("--package", str(cells), "--data", CELLS.replace("images=8", "images=2"), "--storage", str(tmp_path))
    assert exit_code("predict", *flags, "--gates", "1", "--window", "0") == 0
    assert (tmp_path / "areas.json").is_file()
    assert {path.name for path in (tmp_path / "gates").iterdir()} == {"gates.json", "gate_0.png", "gate_shares.png"}
    record = json.loads((tmp_path / "gates" / "gates.json").read_text())
    assert list(record["gate_pictures"]) == ["gate_0.png"]
    assert record["gate_shares"].keys() == set(load_package(cells).manifest.classes)
    with pytest.raises(UserError, match="no images there"):  # results are not taken for images
        list_work(BatchSpec(data=str(tmp_path), storage=str(tmp_path)))
    capsys.readouterr()
    assert exit_code("predict", *flags, "--gates", "1") == 2
    assert "larger than its windows of 32 pixels: cut it" in capsys.readouterr().err


def test_prediction_of_a_folder(ray_local: None, coal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "found"
    images.mkdir()
    sample = load_data(DataSpec(uri=COAL)).val[0]
    Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(images / "small.png")
    Image.fromarray(sample.image.repeat(1, 2, 3).permute(1, 2, 0).numpy()).save(images / "large.png")
    (images / "cut.png").write_bytes(b"\x89PNG")
    flags = ("--package", str(coal), "--data", str(images), "--storage", str(out), "--mm-per-px", "0.5", "--window", "64")
    assert exit_code("predict", *flags, "--workers", "1") == 1
    said = capsys.readouterr().out
    assert said.count("broken: ") == 1
    assert "share of all pixels" in said
    assert {path.name for path in out.iterdir()} == {"masks", "overlays", "measurements.csv", "areas.json", "areas.png", "legend.png"}
    loaded = load_package(coal)
    (whole,) = prepare_for_inference(loaded.model).predict([sample.image.float() / 255])
    assert isinstance(whole, SemanticPrediction)
    small, large = (np.array(Image.open(out / "masks" / f"{name}.png")) for name in ("small", "large"))
    assert (small.dtype, large.shape) == (np.uint8, (128, 192))
    assert (small != whole.probabilities.argmax(0).numpy()).mean() < 0.01
    rows = list(csv.DictReader((out / "measurements.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == list(loaded.manifest.classes) * 2
    for name, mask in (("large.png", large), ("small.png", small)):
        own = {row["label"]: row for row in rows if row["image"].endswith(name)}
        for label, row in enumerate(own.values()):
            assert int(row["area_px"]) == (mask == label).sum()
            assert float(row["area_mm2"]) == pytest.approx(int(row["area_px"]) * 0.25)
            assert float(row["fraction"]) == pytest.approx((mask == label).mean())
    summary = json.loads((out / "areas.json").read_text())
    assert (summary["images"], summary["broken"], summary["slag"]) == (2, 1, None)


def test_the_band_is_compared_in_millimetres_by_classes_of_any_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    manifest = Manifest(preset="slag_deeplab_debug", classes=("background", "pipe", "crust"), num_classes=3, task="semantic")
    save_package(tmp_path / "package", build_model("slag_deeplab_debug", num_classes=3), manifest)
    data = ("--data", "synthetic://slag?images=4&size=64", "--classes", "background,tube=pipe,slag=crust")
    flags = ("--package", str(tmp_path / "package"), *data, "--storage", str(tmp_path / "out"), "--pictures", "0")
    assert exit_code("evaluate", *flags, "--tube-class", "pipe", "--slag-class", "crust", "--tube-diameter-mm", "30") == 0
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["tube_diameter_mm"] == 30
    assert len(record["slag"]["heights_mm"]) + record["slag"]["missed"] == record["images"]


def test_slag_is_measured_where_the_classes_are_tube_and_slag(ray_local: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    manifest = Manifest(preset="slag_deeplab_debug", classes=("background", "tube", "slag"), num_classes=3, task="semantic")
    save_package(tmp_path / "package", build_model("slag_deeplab_debug", num_classes=3), manifest)
    out = tmp_path / "found"
    flags = ("--package", str(tmp_path / "package"), "--data", "synthetic://slag?images=2&size=64", "--storage", str(out), "--workers", "1")
    assert exit_code("predict", *flags, "--tube-diameter-mm", "30", "--no-overlays") == 0
    rows = list(csv.DictReader((out / "slag.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert all(bool(row["height_mm"]) != bool(row["note"]) for row in rows)  # a height, or why there is none
    summary = json.loads((out / "areas.json").read_text())
    assert summary["slag"]["measured"] == sum(bool(row["height_mm"]) for row in rows)
    assert summary["tube_diameter_mm"] == 30


Spoil = Callable[[Path], object]
SPOILED: dict[str, tuple[Spoil, str]] = {
    "another size": (lambda path: Image.fromarray(np.zeros((32, 40), np.uint8)).save(path), "the mask has 40x32 pixels"),
    "an index": (lambda path: Image.fromarray(np.full((40, 40), 7, np.uint8)).save(path), "class index 7 is not in the list"),
    "floats": (lambda path: tifffile.imwrite(path, np.zeros((40, 40), np.float32)), "floating-point pixels"),
    "a colour": (lambda path: Image.new("RGB", (40, 40), (9, 9, 1)).save(path), "colours without a class, such as [9, 9, 1]"),
}


def masks(folder: Path, *, palette: bool = False) -> Path:
    """Eight small images with masks of two of three classes."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        labels = rng.integers(0, 2, (40, 40), dtype=np.uint8)
        Image.fromarray(np.repeat(labels[..., None], 3, 2) if palette else labels).save(folder / "masks" / f"{i}.png")
    colours = {"background": [0, 0, 0], "rock": [1, 1, 1], "dust": [2, 2, 2]}
    name, content = ("palette.json", colours) if palette else ("classes.json", list(colours))
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_mask_is_named_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    spoil, says = SPOILED[name]
    data = masks(tmp_path / "data", palette=name == "a colour")
    spoil(data / "masks" / "3.png")
    assert exit_code("train", "--data", str(data), "--model", "hrnet_debug", *TINY, "--storage", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"{data}/masks/3.png" in error
    assert says in error
    assert not (tmp_path / "runs").exists()
    assert exit_code("check_data", "--data", str(data), "--sheet", str(tmp_path / "sheet.png")) == 1
    said = capsys.readouterr().out
    assert f"{data}/masks/3.png: " in said
    assert "warning: empty class (1)" in said
    assert "no pixel of 'dust' in the training part" in said


def test_training_names_an_empty_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, taken = masks(tmp_path / "data"), tmp_path / "runs" / "run" / "run.json"
    storage.write_bytes(str(taken), b"{}")  # so that nothing is trained
    flags = ("--data", str(data), "--model", "hrnet_debug", *TINY, "--storage", str(tmp_path / "runs"), "--name", "run")
    assert exit_code("train", *flags) == 2
    said = capsys.readouterr()
    assert f"warning: empty class: {data}: no pixel of 'dust' in the training part" in said.out
    assert "a run of this name is there already" in said.err


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("train", ("--model", "losnet_debug"), "model losnet_debug is for instance segmentation, the labels of {data} are for semantic"),
        ("train", ("--model", "losnet_debug", "--class-weights", "median"), "--class-weights: model losnet_debug is not a semantic one"),
        ("train", ("--model", "hrnet_debug", "--class-weights", "1,2"), "class_weights has 2 weights for 3 classes"),
        ("train", ("--model", "hrnet_debug", "--class-weights", "rare"), "class_weights='rare'"),
        ("train", ("--model", "hrnet_debug", "--set", "loss=hinge"), "option loss='hinge'"),
        ("train", ("--model", "hrnet_debug", "--folds", "3", "--fold", "3"), "fold 3 of 3"),
        ("evaluate", ("--package", "{coal}", "--mm-per-px", "1"), "--mm-per-px: has no meaning"),
        ("evaluate", ("--package", "{coal}", "--gates", "1"), "the package knows"),
        ("evaluate", ("--package", "{coal}", "--window", "8"), "windows of 8 pixels are too small"),
        ("predict", ("--package", "{coal}", "--score-threshold", "0.5"), "--score-threshold: has no meaning"),
        ("predict", ("--package", "{coal}", "--tube-diameter-mm", "30"), "--tube-diameter-mm: has no meaning"),
        ("predict", ("--package", "{coal}", "--tube-class", "pipe"), "the band of slag needs the classes pipe and slag"),
        ("evaluate", ("--package", "{coal}", "--axis-degrees", "90"), "--axis-degrees: has no meaning"),
    ],
)
def test_bad_input_is_one_line(
    coal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, argv: tuple[str, ...], says: str
) -> None:
    data = masks(tmp_path / "data")
    flags = [word.format(coal=coal) for word in argv]
    tiny = TINY if name == "train" else ()
    if name == "evaluate" and "--gates" in argv:
        flags += ["--classes", "rock"]
    assert exit_code(name, "--data", str(data), *tiny, *flags, "--storage", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert says.format(data=data) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_model_without_a_gate_has_none_to_show(coal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("evaluate", "--package", str(coal), "--data", COAL, "--gates", "1") == 2
    assert "this package's model has no gate" in capsys.readouterr().err


def test_labels_that_can_be_read_as_both_need_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = masks(tmp_path / "data")
    (data / "classes.json").unlink()
    train = load_job("train")
    assert exit_code("train", "--data", str(data), "--model", "hrnet_debug", *TINY, "--storage", str(tmp_path / "runs")) == 2
    assert "give --task semantic where these labels can be read as class masks" in capsys.readouterr().err
    spec = train.run_spec(train.Args(data=str(data), model="hrnet_debug", task="semantic"))
    assert load_data(spec.data).classes == ("class_0", "class_1")
    assert exit_code("train", "--data", COAL, "--model", "losnet_debug", *TINY, "--storage", str(tmp_path / "runs")) == 2
    assert "choose another scene" in capsys.readouterr().err
