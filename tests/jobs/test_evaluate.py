"""jobs/evaluate.py on synthetic ore and on files: figures that agree with pycocotools, and refusals of one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import exit_code, load_job
from PIL import Image

from stratum.data.images import DepthRule
from stratum.data.source import DataSpec, load_data
from stratum.inference.assess import assess
from stratum.metrics.instance import InstanceEvaluator
from stratum.tracking import client_for, tracking_uri
from stratum_models.catalog import build_model
from stratum_models.interface import InstancePrediction, InstanceTarget
from stratum_models.package import Manifest, load_package, save_package

DATA = "synthetic://ore?images=8&size=96&rocks=15"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package")


def make_package(folder: Path, **values: object) -> Path:
    torch.manual_seed(0)
    given: dict[str, object] = {
        "preset": "losnet_debug",
        "classes": ("ore",),
        "num_classes": 1,
        "task": "instance",
        "score_threshold": 0.05,
    }
    save_package(folder, build_model("losnet_debug", num_classes=1), Manifest(**{**given, **values}))  # type: ignore[arg-type]
    return folder


def test_figures_are_printed_written_and_logged(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = ["--package", str(package), "--data", DATA, "--split", "all", "--storage", str(out), "--experiment", "evaluate-job"]
    assert exit_code("evaluate", *argv, "--mm-per-px", "0.5", "--pictures", "2") == 0
    said = capsys.readouterr().out
    assert "val/mask_ap50" in said
    assert "D80 by volume (mm)" in said
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "overlays.png", "precision_recall.png", "sizes.png"]
    record = json.loads((out / "metrics.json").read_text())
    assert (record["images"], record["score_threshold"], record["split"]) == (8, 0.05, "all")
    client = client_for(tracking_uri())
    experiment = client.get_experiment_by_name("evaluate-job")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id])[0]
    assert run.data.metrics["val/mask_ap50"] == record["metrics"]["val/mask_ap50"]
    assert run.info.status == "FINISHED"
    assert len(client.list_artifacts(run.info.run_id, "evaluation")) == 4


def test_images_that_the_package_was_trained_on_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = make_package(tmp_path / "package", data_fingerprint=load_data(DataSpec(uri=DATA)).fingerprint)
    for flags, says in [(["--split", "all"], "was trained on images of this split"), ([], "")]:
        assert exit_code("evaluate", "--package", str(package), "--data", DATA, *flags) == 0
        said = capsys.readouterr().out
        assert says in said
        assert ("warning" in said) == bool(says)
        assert "infer MB" in said
    assert exit_code("evaluate", "--package", str(package), "--data", DATA.replace("96", "64")) == 0
    assert "not exactly the data and the split" in capsys.readouterr().out


def test_merged_classes_must_be_named_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = make_package(tmp_path / "package", classes=("rock",))
    assert exit_code("evaluate", "--package", str(package), "--data", DATA) == 2
    assert "if it was trained with --classes, such as roca+glomero=ore, give the same here" in capsys.readouterr().err


def test_the_figures_are_those_of_the_predictions(package: Path) -> None:
    data = load_data(DataSpec(uri=DATA))
    loaded = load_package(package)
    found = assess(loaded, data.val, batch_size=3)
    evaluator = InstanceEvaluator(1)
    hits = shown = labelled = 0
    for sample in (data.val[index] for index in range(len(data.val))):
        prediction = loaded.model.predict([sample.image.float() / 255])[0]
        assert isinstance(prediction, InstancePrediction)
        assert isinstance(sample.target, InstanceTarget)
        evaluator.update([prediction], [sample.target])
        kept = prediction.masks[prediction.scores >= 0.05]
        kept = kept[kept.any(dim=(1, 2))]
        shown, labelled = shown + len(kept), labelled + len(sample.target)
        hits += greedy_hits(kept, sample.target.masks)
    for name, value in evaluator.compute().items():
        assert found.metrics[name] == pytest.approx(value, abs=0.02), name  # the model is folded, so a pixel may differ
    assert found.metrics["val/recall"] == pytest.approx(hits / labelled, abs=0.05)
    assert found.sizes.predicted_count == pytest.approx(shown, abs=2)
    assert found.sizes.true_count == labelled


def greedy_hits(masks: torch.Tensor, targets: torch.Tensor) -> int:
    """Best score first, each label once, IoU of at least 0.5: written apart from pycocotools."""
    free, hits = list(range(len(targets))), 0
    for mask in masks:
        overlaps = {index: float((mask & targets[index]).sum()) / max(float((mask | targets[index]).sum()), 1.0) for index in free}
        best = max(overlaps, key=lambda index: overlaps[index], default=None)
        if best is not None and overlaps[best] >= 0.5:
            free.remove(best)
            hits += 1
    return hits


def test_sixteen_bit_images_are_scaled_by_the_packages_rule(tmp_path: Path) -> None:
    job = load_job("evaluate")
    package = make_package(tmp_path / "package", depth_rule={"low": 100, "high": 1123}, classes=("particle",))
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    ids = np.zeros((64, 64), dtype=np.uint16)
    ids[8:30, 8:30] = 1
    for number in range(4):
        Image.fromarray(np.where(ids > 0, 1000 + number, 200).astype(np.uint16)).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray(ids).save(tmp_path / "data" / "masks" / f"{number}.png")
    data = load_data(DataSpec(uri=str(tmp_path / "data")))
    manifest = load_package(package).manifest
    args = job.Args(package=str(package), data=str(tmp_path / "data"), split="all")
    if data.classes != manifest.classes:
        args = job.Args(package=str(package), data=str(tmp_path / "data"), split="all", classes=f"{data.classes[0]}=particle")
        data = load_data(DataSpec(uri=str(tmp_path / "data"), classes=args.classes))
    images = job._chosen(data, manifest, args)
    assert len(images) == 4
    assert images.depth == DepthRule(low=100, high=1123)
    assert int(images[0].image[0, 0, 0]) == round((200 - 100) * 255 / 1023)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--package": "{tmp}/nowhere"}, "nowhere"),
        ({"--data": "{tmp}/nowhere"}, "nowhere"),
        ({"--data": "synthetic://sand"}, "known are synthetic://"),
        ({"--classes": "ore=stone"}, "the package knows ore"),
        ({"--split": "test"}, "use one of val, train, all"),
        ({"--mm-per-px": "-1"}, "mm per pixel"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], says: str
) -> None:
    flags = {"--package": str(package), "--data": DATA, "--storage": str(tmp_path / "out"), **change}
    argv = [text.format(tmp=tmp_path) for pair in flags.items() for text in pair]
    assert exit_code("evaluate", *argv) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
