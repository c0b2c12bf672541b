"""The jobs on a model of two stages: one training, one package, and everything that is done with it."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import zarr
from in_process import exit_code, load_job
from PIL import Image

from stratum.data.source import DataSpec, load_data
from stratum.data.transforms import TWO_STAGE
from stratum.inference.options import with_options
from stratum.training.run import run_local
from stratum.training.spec import ModelSpec, RunSpec, TrainSpec
from stratum_models.errors import UserError
from stratum_models.interface import SemanticPrediction
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import load_package

VESSELS = "synthetic://vessels?images=10&size=96&seed=0"
TRAIN = ("--data", VESSELS, "--model", "two_stage_debug", "--batch", "4", "--evaluate-every", "1", "--cost-size", "96x96")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, trained in this process with everything else as it is by default."""
    folder = tmp_path_factory.mktemp("vessels")
    flags = ("--epochs", "3", "--set", "stage1_share=0.4", "--workers", "0", "--storage", folder, "--name", "run")
    assert exit_code("train", *TRAIN, *flags) == 0
    return folder / "run" / "package"


def test_the_papers_training_is_the_default() -> None:
    train = load_job("train")
    spec = train.run_spec(train.Args(data=VESSELS, model="two_stage"))
    assert (spec.train.optimizer, spec.train.learning_rate, spec.train.weight_decay, spec.train.schedule) == (
        "adamw",
        1e-4,
        0.0,
        "constant",
    )
    assert (spec.train.ema_decay, spec.train.clip_norm, spec.train.warmup_epochs) == (0.0, 0.0, 0.0)
    assert spec.augment == TWO_STAGE
    assert spec.model.overrides == {}  # images keep their size
    own = train.run_spec(train.Args(data=VESSELS, model="two_stage", learning_rate=0.01, size=128, augment="strong"))
    assert (own.train.learning_rate, own.train.schedule, own.augment.crop) == (0.01, "constant", 128)
    assert own.model.overrides == {"input_short": 128}
    other = train.run_spec(train.Args(data=VESSELS, model="hrnet_debug"))
    assert (other.train.learning_rate, other.train.schedule, other.train.ema_decay, other.augment.crop) == (2e-3, "cosine", 0.998, 256)


def test_both_stages_learn_one_after_the_other_and_lie_in_one_package(package: Path) -> None:
    state = json.loads((package.parent / "checkpoints" / "checkpoints.json").read_text())
    history = json.loads((package.parent / "checkpoints" / state["last"] / "state.json").read_text())["state"]["history"]
    first, last = history[0], history[-1]
    assert {name for name in first if name.startswith("train/loss_stage")} == {
        "train/loss_stage1_alpha_focal",
        "train/loss_stage1_foreground_dice",
    }
    assert {name for name in last if name.startswith("train/loss_stage")} == {
        "train/loss_stage2_alpha_focal",
        "train/loss_stage2_foreground_dice",
    }
    loaded = load_package(package)
    assert {name.split(".")[0] for name in loaded.model.state_dict()} == {"stage1", "stage2", "refines"}
    assert loaded.manifest.metrics["val/dice"] > 0


def test_it_is_measured_predicted_and_exported(ray_local: None, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("evaluate", "--package", str(package), "--data", VESSELS, "--storage", str(tmp_path / "eval"), "--pictures", "1") == 0
    record = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    loaded = load_package(package)
    assert record["metrics"]["val/dice"] == pytest.approx(loaded.manifest.metrics["val/dice"], abs=5e-3)
    flags = ("--package", str(package), "--data", VESSELS, "--storage", str(tmp_path / "stage1"), "--pictures", "0", "--set", "count=0")
    assert exit_code("evaluate", *flags) == 0
    assert json.loads((tmp_path / "stage1" / "metrics.json").read_text())["confusion"] != record["confusion"]
    sample = load_data(DataSpec(uri=VESSELS)).val[0]
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(images / "a.png")
    scan = zarr.create_array(images / "scan.zarr", shape=(96, 96, 3), chunks=(32, 32, 3), dtype="uint8")
    scan[:] = sample.image.permute(1, 2, 0).numpy()
    out = tmp_path / "out"
    flags = ("--workers", "1", "--set", "count=3", "--mask-format", "zarr")
    capsys.readouterr()
    assert exit_code("predict", "--package", str(package), "--data", str(images), "--storage", str(out), *flags) == 0
    assert "scan: 3 of 9 patches refined\n" in capsys.readouterr().out
    record = json.loads((out / "areas.json").read_text())["scans"]
    assert record == {str(images / "scan.zarr"): {"refined": 3, "patches": 9}}
    loaded = with_options(loaded, {"count": "3"})
    (found,) = prepare_for_inference(loaded.model).predict([sample.image.float() / 255])
    assert isinstance(found, SemanticPrediction)
    expected = found.probabilities.argmax(0).numpy()
    assert (np.array(Image.open(out / "masks" / "a.png")) != expected).mean() < 0.01
    tiled = np.asarray(zarr.open(out / "masks" / "scan.zarr", mode="r")[:])  # type: ignore[index]
    assert (tiled != expected).mean() < 0.01
    assert {path.name for path in (out / "overlays").iterdir()} == {"a.jpg", "scan.jpg"}
    rows = list(csv.DictReader((out / "measurements.csv").read_text().splitlines()))
    assert [int(row["area_px"]) for row in rows if row["image"].endswith(".zarr")] == np.bincount(tiled.ravel(), minlength=2).tolist()
    loaded = load_package(package)
    assert exit_code("export", "--package", str(package), "--output", str(tmp_path / "two.onnx"), "--size", "32x32", "--no-dynamic") == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "two.stage2.onnx"))
    patch = torch.rand(1, 3, 32, 32)
    expected = loaded.model.stage2.dense_outputs(patch)["logits"]  # type: ignore[operator, union-attr]
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": patch.numpy()})[0]), expected, atol=1e-3, rtol=1e-3)


def test_many_classes_on_real_images(shared: Path, tmp_path: Path) -> None:
    options = {"stage1_share": 0.3, "uncertainty": "margin", "reduction": "max", "prior": True}
    spec = RunSpec(
        data=DataSpec(uri=str(shared / "data" / "sstem"), tile=128),
        model=ModelSpec(preset="two_stage_debug", overrides=options),
        train=TrainSpec(epochs=2, batch_size=4, learning_rate=1e-2, warmup_epochs=0, evaluate_every=1),
        storage=str(tmp_path),
        experiment="test",
        name="run",
        overfit=4,
        threads=1,
    )
    result = run_local(spec)
    assert result.metrics["val/patches"] == 2
    figures = [result.metrics[f"val/dice_{name}"] for name in ("glia_extracellular", "mitochondria", "synapse", "intracellular")]
    known = [value for value in figures if not math.isnan(value)]
    assert result.metrics["val/foreground_dice"] == pytest.approx(sum(known) / len(known))
    loaded = load_package(tmp_path / "run" / "package")
    (found,) = loaded.predict([torch.rand(3, 70, 90)])
    assert isinstance(found, SemanticPrediction)
    assert (found.probabilities.shape, found.refined) == ((5, 70, 90), 2)
    none, some = (with_options(loaded, {"count": str(count)}).predict([torch.rand(3, 96, 96)])[0] for count in (0, 9))
    assert isinstance(none, SemanticPrediction)
    assert isinstance(some, SemanticPrediction)
    assert (none.refined, some.refined) == (0, 9)


def test_options_of_patches_are_refused_where_none_are_refined(package: Path) -> None:
    loaded = load_package(package)
    loaded.model.refines.fill_(False)  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match="--set count: this package is stage 1 alone"):
        with_options(loaded, {"count": "3"})
    assert with_options(loaded, {"input_short": "64"}).manifest.overrides["input_short"] == "64"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("patch=128",), "option patch=128: larger than the images, which are 96x96"),
        (("count=10",), "option count=10: images of 96x96 hold 9 patches of 32 pixels"),
        (("stage2=unet_s3",), "unknown model"),
        (("stage2=unet_s2:input_short=64",), "would change the resolution"),
        (("stage1=losnet_debug",), "must be a semantic model of one stage"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    options: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("train", *TRAIN, "--set", *options, "--workers", "0", "--storage", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("option", "says"), [("counts=3", "has no option 'counts'"), ("prior=yes", "the package's weights do not fit")])
def test_options_that_prediction_cannot_change_are_refused(
    package: Path, option: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--package", str(package), "--data", VESSELS, "--storage", str(tmp_path / "out"), "--set", option)
    assert exit_code("predict", *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_patch_larger_than_what_training_cuts_out_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--augment", "strong", "--crop", "24", "--workers", "0", "--storage", str(tmp_path / "runs"))
    assert exit_code("train", *TRAIN, *flags) == 2
    assert "option patch=32: larger than the images, which are 24x24" in capsys.readouterr().err
