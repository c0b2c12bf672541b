"""Packages: what is saved comes back, and what was damaged is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, SegmentationModel, SemanticPrediction
from stratum_models.package import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    above_threshold,
    load_manifest,
    load_matching,
    load_package,
    save_package,
)

PRESET = "losnet_debug"


def model_of(num_classes: int = 2, seed: int = 0) -> SegmentationModel:
    torch.manual_seed(seed)
    return build_model(PRESET, num_classes=num_classes, overrides={}, backbone_weights=None).eval()


def manifest_of(**values: object) -> Manifest:
    given: dict[str, object] = {"preset": PRESET, "classes": ("ore", "slag"), "num_classes": 2, "task": "instance"}
    return Manifest(**{**given, **values})  # type: ignore[arg-type]


def test_a_package_answers_as_the_model_did(tmp_path: Path) -> None:
    model = model_of()
    written = save_package(
        tmp_path / "package",
        model,
        manifest_of(score_threshold=0.25, depth_rule={"low": 0, "high": 4095}, metrics={"val/mask_ap50": 0.5, "bad": float("nan")}),
    )
    loaded = load_package(tmp_path / "package")
    assert not loaded.model.training
    assert loaded.manifest.weights_sha256 == written.weights_sha256 != ""
    assert loaded.manifest.metrics == {"val/mask_ap50": 0.5}
    assert loaded.manifest.depth_rule == {"low": 0, "high": 4095}
    assert "torch" in loaded.manifest.versions
    images = [torch.rand(3, 64, 96)]
    before, after = model.predict(images)[0], loaded.model.predict(images)[0]
    assert isinstance(before, InstancePrediction)
    assert isinstance(after, InstancePrediction)
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.boxes, after.boxes)


@pytest.mark.parametrize(("half", "megabytes"), [(False, 10), (True, 5)])
def test_a_losnet_is_as_small_as_promised(tmp_path: Path, half: bool, megabytes: int) -> None:
    model = build_model("losnet", num_classes=1)
    save_package(tmp_path / "package", model, manifest_of(preset="losnet", classes=("ore",), num_classes=1), half=half)
    assert 0.9e6 * megabytes < sum(path.stat().st_size for path in (tmp_path / "package").iterdir()) < 1e6 * megabytes


def test_only_two_files_and_nothing_left_beside(tmp_path: Path) -> None:
    for seed in (0, 1):  # the second replaces the first
        save_package(tmp_path / "package", model_of(seed=seed), manifest_of())
    assert sorted(path.name for path in (tmp_path / "package").iterdir()) == [MANIFEST_FILE, WEIGHTS_FILE]
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    expected = model_of(seed=1).state_dict()
    for name, value in load_package(tmp_path / "package").model.state_dict().items():
        assert torch.equal(value, expected[name])


def test_half_precision_halves_the_file_and_comes_back_as_float32(tmp_path: Path) -> None:
    model = model_of()
    large = next(name for name, _ in model.named_buffers() if name.endswith("running_var"))
    model.get_buffer(large).fill_(1e6)  # more than float16 holds
    save_package(tmp_path / "full", model, manifest_of())
    save_package(tmp_path / "half", model, manifest_of(), half=True)
    full, half = ((tmp_path / kind / WEIGHTS_FILE).stat().st_size for kind in ("full", "half"))
    assert half < 0.6 * full
    loaded = load_package(tmp_path / "half").model
    assert torch.equal(loaded.get_buffer(large), model.get_buffer(large))
    for name, value in loaded.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype
        assert torch.allclose(value.double(), model.state_dict()[name].double(), rtol=1e-3, atol=1e-6)


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-50] ^= 4
    path.write_bytes(bytes(data))


def lose_the_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


@pytest.mark.parametrize(("damage", "says"), [(truncate, "damaged"), (flip_a_bit, "damaged"), (lose_the_weights, "missing")])
def test_damaged_weights_are_refused(tmp_path: Path, damage: object, says: str) -> None:
    save_package(tmp_path / "package", model_of(), manifest_of())
    assert callable(damage)
    damage(tmp_path / "package")
    with pytest.raises(UserError, match=says) as caught:
        load_package(tmp_path / "package")
    assert str(tmp_path / "package" / WEIGHTS_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preset": "losnett"}, "losnet_debug"),  # lists the known ones
        ({"classes": ["ore"]}, "1 class names for 2"),
        ({"format": 99}, "format 99"),
        ({"task": "depth"}, "task 'depth'"),
        ({"surprise": 1}, "surprise"),
        ({"classes": ["ore", "slag", "belt"], "num_classes": 3}, "does not fit"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    save_package(tmp_path / "package", model_of(), manifest_of())
    path = tmp_path / "package" / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=says):
        load_package(tmp_path / "package")


@pytest.mark.parametrize("text", ["", "[]", '{"preset": "losnet"', '{"preset": "losnet"}', "\xff\xfe"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_FILE).write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=MANIFEST_FILE):
        load_manifest(tmp_path)


def test_a_folder_that_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a model package is a folder with"):
        load_package(tmp_path)


def test_other_classes_take_all_but_the_classifier() -> None:
    source, target = model_of(2, seed=0), model_of(5, seed=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    left = load_matching(target, source.state_dict())
    assert left
    assert all(before[name].shape != source.state_dict()[name].shape for name in left)
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name in left else source.state_dict()[name])


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="none of the"):
        load_matching(nn.Linear(3, 4), model_of().state_dict())


def test_the_threshold_drops_weak_instances_only() -> None:
    prediction = InstancePrediction(
        boxes=torch.rand(3, 4), scores=torch.tensor([0.9, 0.5, 0.1]), labels=torch.arange(3), masks=torch.zeros(3, 4, 4, dtype=torch.bool)
    )
    kept = above_threshold(prediction, 0.5)
    assert isinstance(kept, InstancePrediction)
    assert kept.labels.tolist() == [0, 1]
    assert kept.masks.data_ptr() == prediction.masks.data_ptr()  # the first ones, not a copy of them
    semantic = SemanticPrediction(probabilities=torch.rand(2, 4, 4))
    assert above_threshold(semantic, 0.5) is semantic


@pytest.mark.parametrize("keep", [[True, True, True], [True, False, False], [False, True, True], [True, False, True], [False] * 3])
def test_instances_are_chosen_one_by_one(keep: list[bool]) -> None:
    masks = torch.rand(3, 6, 5) > 0.5
    masks[1] = False
    prediction = InstancePrediction(boxes=torch.rand(3, 4), scores=torch.rand(3), labels=torch.arange(3), masks=masks)
    chosen, wanted = prediction.where(torch.tensor(keep)), torch.tensor(keep)
    for name in ("boxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(chosen, name), getattr(prediction, name)[wanted])
