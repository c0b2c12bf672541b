"""Loading a whole data set: splits, equal pictures, fingerprints, 16 bits, the sample set, S3 and synthetic scenes."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from stratum import storage
from stratum.data.images import DepthRule
from stratum.data.records import Record
from stratum.data.rle import encode
from stratum.data.samples import SampleSet
from stratum.data.source import DataSpec, load_data, survey_data
from stratum.data.split import split
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget


def data_set(folder: Path, count: int = 6, *, deep: bool = False, empty: int = 1, name: str = "a.json") -> str:
    """A COCO file with ``count`` pictures of 24x16, the last ``empty`` of them without annotations; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        pixels = rng.integers(1000 * i, 1000 * i + 900, (16, 24)) if deep else rng.integers(0, 256, (16, 24, 3))
        Image.fromarray(pixels.astype(np.uint16 if deep else np.uint8)).save(folder / f"{i}.png")
    annotations = [
        {"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": [[1, 1, 5 + i, 1, 5 + i, 9]]} for i in range(count - empty)
    ]
    images = [{"id": i, "file_name": f"{i}.png", "height": 16, "width": 24} for i in range(count)]
    categories = [{"id": 1, "name": "rock"}, {"id": 2, "name": "clump"}]
    (folder / name).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"uri": ""}, "no data were named"), ({"val_fraction": 0.0}, "between 0 and 1"), ({"classes": "a+=b"}, "not of the form")],
)
def test_a_spec_is_checked_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataSpec(**{"uri": "x", **fields})


def test_samples_are_as_promised(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=data_set(tmp_path), classes="rock+clump=ore"))
    assert data.task == "instance"
    assert data.depth is None
    assert len(data.train.uris) == len(data.train.sizes) == len(data.train) == 5
    assert data.train.annotation_count + data.val.annotation_count == 5
    for i in range(len(data.train)):
        sample, target = data.train[i], data.train[i].target
        assert isinstance(target, InstanceTarget)
        assert (sample.image.dtype, sample.image.shape, sample.uri) == (torch.uint8, (3, 16, 24), data.train.uris[i])
        types = (target.boxes.dtype, target.labels.dtype, target.masks.dtype, target.crowd.dtype)
        assert types == (torch.float32, torch.int64, torch.bool, torch.bool)
        assert target.boxes.shape == (len(target), 4)
        assert target.masks.shape == (len(target), 16, 24)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(Image.open(sample.uri)))


def test_the_file_is_read_when_asked_for_and_its_image_kept_while_there_is_room(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=data_set(tmp_path)))
    record = data.train.records[0]
    size = 3 * 16 * 24
    roomy, narrow = SampleSet(data.train.records, None, 10 * size), SampleSet(data.train.records, None, 2 * size - 1)
    first = roomy[0].image
    for index in (0, 1):
        assert len(narrow[index].image) == 3
    Path(record.uri).unlink()
    assert torch.equal(roomy[0].image, first)
    with pytest.raises(storage.MissingError):
        narrow[0]
    assert torch.equal(roomy[-len(roomy)].image, first)
    with pytest.raises(IndexError):
        roomy[len(roomy)]


def test_what_a_caller_does_to_a_sample_stays_with_the_caller(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=data_set(tmp_path)))
    before = data.train[0].image.clone()
    data.train[0].image.zero_()
    data.train[0].target.masks.zero_()
    assert torch.equal(data.train[0].image, before)
    assert data.train.target(0).masks.any() or not len(data.train.target(0))


def test_sample_sets_go_to_other_processes_and_machines(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=data_set(tmp_path)))
    small = len(pickle.dumps(data.train))
    samples = [data.train[i] for i in range(len(data.train))]
    assert len(pickle.dumps(data.train)) == small  # the decoded images stay here
    copy = pickle.loads(pickle.dumps(data.train))
    elsewhere = SampleSet([replace(r, path=Path("/nowhere", r.uri.lstrip("/"))) for r in copy.records])
    for other in (copy, elsewhere):
        assert all(torch.equal(other[i].image, s.image) for i, s in enumerate(samples))
    loader = DataLoader(data.train, batch_size=2, num_workers=1, collate_fn=list, multiprocessing_context="fork")
    assert [s.uri for batch in loader for s in batch] == data.train.uris


def test_subset_keeps_the_order_asked_for(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=data_set(tmp_path)))
    assert data.train.subset([3, 0]).uris == [data.train.uris[3], data.train.uris[0]]


def test_deep_images_are_scaled_by_the_training_part_alone(tmp_path: Path) -> None:
    data_set(tmp_path, 4, deep=True, name="train.json")
    data_set(tmp_path / "v", 6, deep=True, name="x.json")
    (tmp_path / "v" / "x.json").rename(tmp_path / "val.json")
    content = json.loads((tmp_path / "val.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"v/{image['file_name']}"
    (tmp_path / "val.json").write_text(json.dumps(content))
    data = load_data(DataSpec(uri=str(tmp_path)))
    train = np.stack([np.asarray(Image.open(uri)) for uri in data.train.uris])
    low, high = np.percentile(train, [0.1, 99.9], method="inverted_cdf")
    assert data.depth == DepthRule(low=int(low), high=int(high))
    value = np.asarray(Image.open(data.train.uris[2])).astype(np.float64)
    expected = np.rint(((value - low) * 255 / (high - low)).clip(0, 255))
    np.testing.assert_array_equal(data.train[2].image[0].numpy(), expected)
    assert data.val[5].image.min() == 255  # brighter than anything in training


def test_equal_pictures_are_warned_about_and_never_split_apart(tmp_path: Path) -> None:
    uri = data_set(tmp_path, 12)
    for i in range(1, 6):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{i}.png")
    Image.open(tmp_path / "0.png").save(tmp_path / "6.png", compress_level=0)  # other bytes, the same picture
    for seed in range(5):
        found = survey_data(DataSpec(uri=uri, split_seed=seed))
        assert [(p.severity, p.kind) for p in found.problems] == [("warning", "same picture twice")] * 6
        same = {str(tmp_path / f"{i}.png") for i in range(7)}
        assert len(same & {r.uri for r in found.val}) in (0, 7)


def test_the_same_picture_in_train_and_val(tmp_path: Path) -> None:
    data_set(tmp_path / "train", 3, name="_annotations.coco.json")
    data_set(tmp_path / "valid", 4, name="_annotations.coco.json")
    shutil.copy(tmp_path / "train" / "1.png", tmp_path / "valid" / "2.png")
    data = load_data(DataSpec(uri=str(tmp_path)))
    problem = next(p for p in data.problems if p.kind == "same picture in train and val")
    assert (problem.severity, problem.uri) == ("warning", str(tmp_path / "valid" / "2.png"))
    assert str(tmp_path / "train" / "1.png") in problem.detail


def made_up(empty: list[bool]) -> list[Record]:
    rle = encode(np.ones((1, 2, 2), dtype=bool))[0]
    return [
        Record(uri=str(i), size=(2, 2), picture=f"p{i}", **({} if e else {"labels": (0,), "rles": (rle,), "crowd": (False,)}))
        for i, e in enumerate(empty)
    ]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_splits_divide_images_with_and_without_instances_alike(empty: list[bool], fraction: float, seed: int) -> None:
    records = made_up(empty)
    train, val = split(records, fraction, seed)
    assert sorted(int(r.uri) for r in train + val) == list(range(len(records)))
    assert [int(r.uri) for r in train] == sorted(int(r.uri) for r in train)
    assert len(val) == min(max(round(len(records) * fraction), 1), len(records) - 1)
    expected = len(val) * sum(empty) / len(empty)
    assert abs(sum(not r.labels for r in val) - expected) <= 1
    if len(empty) - sum(empty) > 1:
        assert all(any(r.labels for r in part) for part in (train, val))
    assert [r.uri for r in split(records[::-1], fraction, seed)[1]] == [r.uri for r in val][::-1]


def test_splits_follow_the_seed(tmp_path: Path) -> None:
    uri = data_set(tmp_path, 20)
    first, again, other = (load_data(DataSpec(uri=uri, split_seed=seed, val_fraction=0.3)).val.uris for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 6


def test_a_part_of_negatives_alone_is_an_error(tmp_path: Path) -> None:
    data_set(tmp_path, 3, name="train.json")
    data_set(tmp_path, 2, empty=2, name="val.json")
    with pytest.raises(UserError, match=f"no instances: {tmp_path}: none in the validation part: label some of its images"):
        load_data(DataSpec(uri=str(tmp_path)))
    one = data_set(tmp_path / "one", 3, empty=2)
    assert [p.detail[:25] for p in survey_data(DataSpec(uri=one)).errors] == ["none in the training part"]


def test_one_picture_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 usable images for training and 0 for validation"):
        load_data(DataSpec(uri=data_set(tmp_path, 1, empty=0)))


def test_fingerprints_follow_content_and_labels_and_nothing_else(tmp_path: Path) -> None:
    uri = data_set(tmp_path / "one")
    original = load_data(DataSpec(uri=uri))
    shutil.copytree(uri, tmp_path / "copy")
    content = json.loads((tmp_path / "copy" / "a.json").read_text())
    content["images"].reverse()
    content["annotations"].reverse()
    (tmp_path / "copy" / "a.json").write_text(json.dumps(content))
    assert load_data(DataSpec(uri=str(tmp_path / "copy"))).fingerprint == original.fingerprint
    others = {
        load_data(replace(DataSpec(uri=uri), **change)).fingerprint
        for change in ({"classes": "rock"}, {"classes": "rock+clump=a"}, {"split_seed": 3})
    }
    content["annotations"][0]["segmentation"] = [[0, 0, 9, 0, 9, 9]]
    (tmp_path / "copy" / "a.json").write_text(json.dumps(content))
    others.add(load_data(DataSpec(uri=str(tmp_path / "copy"))).fingerprint)
    assert len(others - {original.fingerprint}) == 4


def test_unknown_classes_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'stone'.*known: rock, clump"):
        load_data(DataSpec(uri=data_set(tmp_path), classes="stone=ore"))


def test_unselected_categories_leave_their_images_as_negatives(tmp_path: Path) -> None:
    found = survey_data(DataSpec(uri=data_set(tmp_path), classes="clump"))
    assert found.classes == ("clump",)
    assert found.dropped == {"rock": 3}
    assert sum(not r.labels for r in [*found.train, *found.val]) == 4


def test_synthetic_scenes() -> None:
    spec = DataSpec(uri="synthetic://ore?images=4&size=64&seed=3")
    data = load_data(spec)
    assert data.classes == ("ore",)
    assert len(data.train) + len(data.val) == 4
    assert load_data(spec).fingerprint == data.fingerprint
    assert load_data(replace(spec, uri=spec.uri.replace("seed=3", "seed=4"))).fingerprint != data.fingerprint
    renamed = load_data(replace(spec, classes="ore=rock"))
    assert renamed.classes == ("rock",)
    assert torch.equal(renamed.train[0].image, data.train[0].image)
    assert pickle.loads(pickle.dumps(data.train))[0].uri == data.train.uris[0]
    with pytest.raises(UserError, match="known: ore"):
        load_data(replace(spec, classes="slag"))


def test_a_data_set_on_s3(tmp_path: Path, s3_env: Any) -> None:
    local = data_set(tmp_path / "images")
    shutil.move(tmp_path / "images" / "a.json", tmp_path / "a.json")
    uri = f"s3://{s3_env.bucket()}/sets/ore"
    storage.upload_tree(tmp_path, uri)
    here, there = load_data(DataSpec(uri=str(tmp_path))), load_data(DataSpec(uri=uri))
    assert there.fingerprint == here.fingerprint
    assert sorted(there.train.uris) == sorted(f"{uri}/images/{Path(u).name}" for u in here.train.uris)
    assert local in here.train.uris[0]
    assert torch.equal(there.train[1].image, here.train[1].image)
    assert load_data(DataSpec(uri=f"{uri}/a.json")).fingerprint == here.fingerprint
    elsewhere = SampleSet([replace(r, path=None) for r in there.train.records])
    assert torch.equal(elsewhere[1].image, here.train[1].image)
    storage.remove_tree(f"{uri}/images/2.png")
    storage.write_bytes(f"{uri}/images/3.png", b"broken")
    found = survey_data(DataSpec(uri=uri))
    assert sorted((p.kind, p.uri) for p in found.errors) == [("broken image", f"{uri}/images/3.png"), ("missing file", f"{uri}/2.png")]
    wrong = {
        f"{uri}/none": "nothing under this name",
        f"s3://{s3_env.bucket()}": "no data at",
        "s3://no-such-bucket-of-ore/ore": "no-such-bucket-of-ore/ore: the bucket does not exist",
        "s3://no-such-bucket-of-ore/ore.json": "the bucket does not exist",
    }
    for nowhere, said in wrong.items():
        with pytest.raises(UserError, match=said):
            load_data(DataSpec(uri=nowhere))
