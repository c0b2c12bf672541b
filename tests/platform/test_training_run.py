"""A whole run in this process: from synthetic ore to a package, the same every time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stratum import storage
from stratum.data.records import Problem
from stratum.data.source import DataSpec, load_data
from stratum.data.transforms import NONE, AugmentSpec
from stratum.inference.assess import assess
from stratum.training.run import (
    RUN_FILE,
    check,
    check_unchanged,
    claim,
    claimed,
    claimed_options,
    report_problems,
    resolved,
    run_folder,
    run_local,
)
from stratum.training.spec import ModelSpec, RunSpec, TrainSpec
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction
from stratum_models.package import load_package

# Of losnet_debug on synthetic ore, epoch by epoch: what changes them changes every training, and should say so.
GOLDEN = {
    "train/loss_class": [1.12961, 1.10322, 1.07776],
    "train/loss_box": [0.74603, 0.72333, 0.69972],
    "train/loss_center": [0.69161, 0.68378, 0.68585],
    "train/loss_mask": [0.94599, 0.93549, 0.93016],
}

AUGMENT = AugmentSpec(short_sides=(64,), crop=64, photometric=0.2, copy_paste=0.5, mosaic=0.5)
TRAIN = TrainSpec(
    epochs=3, batch_size=4, optimizer="adamw", learning_rate=2e-3, schedule="cosine", ema_decay=0.9, ema_tau=5, mosaic_off_last=1
)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    data = DataSpec(uri="synthetic://ore?images=10&size=64&seed=0")
    model = ModelSpec(preset="losnet_debug")
    return RunSpec(data=data, model=model, train=TRAIN, augment=AUGMENT, storage=str(tmp_path), experiment="test", name="run", threads=1)


def test_golden_losses(spec: RunSpec) -> None:
    history = run_local(spec).history
    for name, values in GOLDEN.items():
        assert [row[name] for row in history] == pytest.approx(values, rel=1e-3), name


def test_the_package_gives_the_metrics_that_it_states(spec: RunSpec) -> None:
    few = replace(spec, overfit=4, augment=NONE, train=replace(TRAIN, evaluate_every=3))
    lines: list[str] = []
    result = run_local(few, say=lines.append)
    assert result.package == str(Path(spec.storage) / "run" / "package")
    assert lines[-1] == f"all epochs done; kept the weights of epoch 3: {result.package}"
    loaded = load_package(Path(result.package))
    assert loaded.manifest.metrics["val/mask_ap50"] == result.metrics["val/mask_ap50"]
    assert loaded.manifest.cost["cost/train_s"] > 0
    assert len(loaded.manifest.data_fingerprint) == 64
    found = loaded.predict([torch.rand(3, 50, 70)])[0]
    assert isinstance(found, InstancePrediction)
    assert found.masks.shape[1:] == (50, 70)


def test_half_precision_is_what_is_evaluated(spec: RunSpec) -> None:
    result = run_local(replace(spec, half_package=True, augment=NONE, train=replace(TRAIN, epochs=1)))
    loaded = load_package(Path(str(result.package)))
    weights = [value for value in loaded.model.state_dict().values() if value.is_floating_point()]
    assert all(torch.equal(value, value.half().float()) for value in weights)
    found = assess(loaded, load_data(spec.data).val).metrics
    assert found["val/mask_ap50"] == pytest.approx(result.metrics["val/mask_ap50"], abs=0.02)  # folded for speed: a pixel may differ
    assert result.metrics["train/step_ms"] > 0


def test_what_is_left_out_is_named(spec: RunSpec) -> None:
    kinds = [("error", "missing file", "a.png"), ("warning", "clipped", "b.png"), ("warning", "clipped", "c.png")]
    kinds += [("warning", "black and white", f"{i}.png") for i in range(7)]
    problems = [Problem(severity=severity, kind=kind, uri=uri, detail="why") for severity, kind, uri in kinds]  # type: ignore[arg-type]
    lines: list[str] = []
    report_problems(replace(load_data(spec.data), problems=problems), lines.append)
    assert lines == [
        "left out: missing file: a.png: why",
        "warnings on the data: black and white (7), clipped (2)",
        *(f"warning: black and white: {i}.png: why" for i in range(5)),
        "and 2 more of kind black and white: jobs/check_data.py lists them",
    ]


def test_a_jobs_options_are_kept_beside_the_spec(spec: RunSpec) -> None:
    claim(spec, "id", {"workers": 0})
    assert claimed_options(run_folder(spec)) == {"workers": 0}


def test_a_run_does_not_go_on_with_other_data(spec: RunSpec) -> None:
    data, noted = load_data(spec.data), f"{run_folder(spec)}/{RUN_FILE}"
    claim(spec, "id", {}, data.fingerprint)
    check_unchanged(noted, data, spec.data)
    with pytest.raises(UserError, match=r"have changed since .*/run was begun: restore them, or start anew"):
        check_unchanged(noted, replace(data, fingerprint="other"), spec.data)
    storage.write_json(noted, {name: value for name, value in storage.read_json(noted).items() if name != "data_fingerprint"})
    check_unchanged(noted, replace(data, fingerprint="other"), spec.data)  # of an earlier version


def test_fine_tuning_takes_other_classes(spec: RunSpec) -> None:
    first = run_local(replace(spec, train=replace(TRAIN, epochs=1)))
    model = replace(spec.model, init=first.package)
    classes = replace(spec.data, classes="ore=rock")
    tuned = replace(spec, name="tuned", model=model, data=classes, train=replace(TRAIN, epochs=1, learning_rate=1e-9, ema_decay=0))
    result = run_local(tuned)
    old, new = (load_package(Path(str(package))) for package in (first.package, result.package))
    assert new.manifest.classes == ("rock",)
    weights = dict(new.model.named_parameters())
    for name, value in old.model.named_parameters():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


def test_a_claim_keeps_the_spec_and_refuses_a_second_run_of_the_name(spec: RunSpec) -> None:
    claim(spec)
    claim(spec, "1234")
    assert claimed(run_folder(spec)) == (spec, "1234")
    with pytest.raises(UserError, match=r"a run of this name is there already; go on with --resume run"):
        claim(spec)


def test_paths_become_absolute_and_options_get_their_types(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ModelSpec(preset="losnet_debug", overrides={"head_convs": "2"}, init="models:/ore@champion", backbone_weights="imagenet")
    found = resolved(replace(spec, data=DataSpec(uri="ore"), storage="runs", model=model))
    assert found.data.uri == str(tmp_path / "ore")
    assert found.storage == str(tmp_path / "runs")
    assert found.model == replace(model, overrides={"head_convs": 2})
    assert resolved(replace(spec, model=replace(model, init="old/package"))).model.init == str(tmp_path / "old" / "package")


def test_a_check_reads_the_data_and_builds_the_model(spec: RunSpec) -> None:
    assert len(check(spec).train) == 8
    with pytest.raises(UserError, match="larger than the 8 training images"):
        check(replace(spec, train=replace(TRAIN, batch_size=9)))
    with pytest.raises(UserError, match="/nowhere/weights"):
        check(replace(spec, model=ModelSpec(preset="losnet_debug", backbone_weights="/nowhere/weights.safetensors")))
