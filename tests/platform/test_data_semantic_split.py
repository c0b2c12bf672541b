"""Folds, tiles, class weights and augmentation of class masks."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stratum.data.classmask import pack
from stratum.data.frequencies import class_weights, pixel_totals
from stratum.data.loader import build_loader
from stratum.data.mosaic import AugmentedSet
from stratum.data.packing import PackedBatch
from stratum.data.records import Record
from stratum.data.rle import encode
from stratum.data.samples import SampleSet
from stratum.data.source import DataSpec, load_data
from stratum.data.tiles import cut, tiles
from stratum.data.transforms import GREY, STRONG
from stratum_models.errors import UserError


def folder(path: Path, count: int = 7, size: tuple[int, int] = (40, 52)) -> str:
    """Pictures whose green channel is their mask times 60."""
    for i in range(count):
        rng = np.random.default_rng(i)
        mask = np.kron(rng.integers(0, 3, (size[0] // 4, size[1] // 4)), np.ones((4, 4))).astype(np.uint8)
        picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        picture[..., 1] = 60 * mask
        for name, array in (("images", picture), ("masks", mask)):
            (path / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path / name / f"{i}.png")
    (path / "classes.json").write_text(json.dumps(["background", "rock", "dust"]))
    return str(path)


def test_folds_hold_every_image_out_once(tmp_path: Path) -> None:
    uri = folder(tmp_path)
    held_out: Counter[str] = Counter()
    for fold in range(3):
        data = load_data(DataSpec(uri=uri, folds=3, fold=fold))
        assert not set(data.train.uris) & set(data.val.uris)
        assert len(data.train) + len(data.val) == 7
        assert len(data.val) in (2, 3)
        held_out.update(data.val.uris)
    assert len(held_out) == 7
    assert set(held_out.values()) == {1}
    again = load_data(DataSpec(uri=uri, folds=3, fold=1))
    assert again.val.uris == load_data(DataSpec(uri=uri, folds=3, fold=1)).val.uris
    assert any(again.val.uris != load_data(DataSpec(uri=uri, folds=3, fold=1, split_seed=s)).val.uris for s in (1, 2, 3))
    synthetic = load_data(DataSpec(uri="synthetic://slag?images=8&size=32", folds=4, fold=3))
    assert (len(synthetic.train), len(synthetic.val)) == (6, 2)
    with pytest.raises(UserError, match="7 different images cannot be dealt into 8 folds"):
        load_data(DataSpec(uri=uri, folds=8))


def test_folds_pool_the_parts_of_a_data_set(tmp_path: Path) -> None:
    folder(tmp_path / "train", 4)
    folder(tmp_path / "val", 6)
    for i in range(4):
        (tmp_path / "val" / "images" / f"{i}.png").unlink()
        (tmp_path / "val" / "masks" / f"{i}.png").unlink()
    (tmp_path / "classes.json").write_text((tmp_path / "train" / "classes.json").read_text())
    data = load_data(DataSpec(uri=str(tmp_path), folds=3))
    assert (len(data.train), len(data.val)) == (4, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "panoptic"}, "the task 'panoptic' is not known"),
        ({"folds": 1}, "fold 0 of 1 is no fold"),
        ({"folds": 3, "fold": 3}, "fold 3 of 3 is no fold"),
        ({"fold": 1}, "give folds"),
        ({"tile": 8}, "tiles of 8 pixels are too small"),
    ],
)
def test_a_spec_is_checked_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataSpec(**{"uri": "x", **fields})


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 128))
def test_tiles_hold_each_pixel_once_and_are_even(height: int, width: int, side: int) -> None:
    covered = np.zeros((height, width), dtype=int)
    for top, left, h, w in tiles(height, width, side):
        assert 1 <= h <= side
        assert 1 <= w <= side
        assert h >= min(side // 2, height)
        assert w >= min(side // 2, width)
        covered[top : top + h, left : left + w] += 1
    assert (covered == 1).all()


def test_sixteen_crops_of_the_paper() -> None:
    assert tiles(1024, 1024, 256) == [(y, x, 256, 256) for y in range(0, 1024, 256) for x in range(0, 1024, 256)]


def test_tiles_of_an_image_stay_together_and_show_their_part(tmp_path: Path) -> None:
    uri = folder(tmp_path)
    whole = load_data(DataSpec(uri=uri))
    data = load_data(DataSpec(uri=uri, tile=32))
    assert (len(data.train), len(data.val)) == (4 * len(whole.train), 4 * len(whole.val))
    assert {u.partition("#")[0] for u in data.train.uris} == set(whole.train.uris)
    assert len(set(data.train.uris + data.val.uris)) == 28
    for i in range(8):
        sample, record = data.train[i], data.train.records[i]
        assert record.window is not None
        (top, left), (height, width) = record.window, record.size
        assert sample.image.shape == (3, height, width)
        parent = whole.train[whole.train.uris.index(record.file)]
        assert torch.equal(sample.image, parent.image[:, top : top + height, left : left + width])
        assert torch.equal(sample.image[1] // 60, sample.target.mask.to(torch.uint8))
        assert pixel_totals([record], 3) == tuple(int((sample.target.mask == k).sum()) for k in range(3))
    elsewhere = SampleSet([replace(r, path=None) for r in data.train.records])
    assert torch.equal(elsewhere[5].image, data.train[5].image)
    assert data.fingerprint != whole.fingerprint


def test_tiles_cut_instances(tmp_path: Path) -> None:
    masks = np.zeros((2, 64, 64), dtype=bool)
    masks[0, 20:40, 20:40] = True
    masks[1, 2:5, 2:5] = True
    record = Record(uri="a", size=(64, 64), labels=(4, 7), rles=tuple(encode(masks)), crowd=(False, True), pixels=torch.zeros(3, 64, 64))
    found = SampleSet(cut([record], 32))
    assert [found.records[i].labels for i in range(4)] == [(4, 7), (4,), (4,), (4,)]
    assert found.records[0].crowd == (False, True)
    for i, (top, left) in enumerate(((0, 0), (0, 32), (32, 0), (32, 32))):
        assert found[i].uri == f"a#y{top}x{left}"
        np.testing.assert_array_equal(found.target(i).masks[0].numpy(), masks[0, top : top + 32, left : left + 32])
    assert cut([record], 64) == [record]


def counted(*counts: tuple[int, ...]) -> list[Record]:
    return [Record(uri=str(i), size=(1, sum(c)), mask=pack(np.zeros((1, sum(c)), np.uint8)), pixel_counts=c) for i, c in enumerate(counts)]


def test_class_weights_by_hand() -> None:
    records = counted((60, 40, 0, 0), (90, 0, 10, 0))
    assert class_weights(records, 4, "inverse") == pytest.approx((200 / (3 * 150), 200 / (3 * 40), 200 / (3 * 10), 0.0))
    # in the images that show it: 150 of 200, 40 of 100, 10 of 100; the middle one is 0.4
    assert class_weights(records, 4, "median") == pytest.approx((0.4 / 0.75, 1.0, 4.0, 0.0))


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=1, max_size=6))
def test_inverse_weights_give_every_class_the_same_share(counts: list[tuple[int, ...]]) -> None:
    if not any(map(sum, counts)):
        return
    records = counted(*counts)
    totals = pixel_totals(records, 3)
    shares = [w * n for w, n in zip(class_weights(records, 3, "inverse"), totals, strict=True) if n]
    assert shares == pytest.approx([shares[0]] * len(shares))
    assert sum(shares) == pytest.approx(sum(totals))


def test_class_weights_of_a_data_set(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=folder(tmp_path)))
    masks = torch.stack([data.train[i].target.mask for i in range(len(data.train))])
    assert pixel_totals(data.train.records, 3) == tuple(int((masks == k).sum()) for k in range(3))
    instances = load_data(DataSpec(uri="synthetic://ore?images=2&size=32"))
    with pytest.raises(UserError, match="these data hold instances"):
        class_weights(instances.train.records, 1)
    with pytest.raises(UserError, match="known are inverse, median"):
        class_weights(data.train.records, 3, "square")
    with pytest.raises(UserError, match="no pixel of the training part is labelled"):
        class_weights(counted((0, 0)), 2)


def test_masks_go_through_every_augmentation_with_their_image(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=folder(tmp_path)))
    spec = replace(STRONG, crop=48, short_sides=(40, 64), photometric=0.0, blur=0.0, noise=0.0, mosaic=0.7, min_area=10_000)
    spec = replace(spec, interpolation="nearest", copy_paste=1.0)
    augmented = AugmentedSet(data.train, spec, seed=1)
    padded = 0
    for index in range(len(augmented)):
        for epoch in range(4):
            sample = augmented.draw(index, epoch)
            mask, green = sample.target.mask, sample.image[1]
            assert sample.image.shape == (3, 48, 48)
            known = mask != 255
            assert (green[~known] == GREY).all()
            # nearest neighbours by the same rule: the pixels of the image and of its mask are the same ones
            assert (green[known] == 60 * mask[known]).float().mean() > 0.97
            padded += int((~known).sum())
    assert padded > 0


def test_batches_carry_masks(tmp_path: Path) -> None:
    data = load_data(DataSpec(uri=folder(tmp_path)))
    for images, targets, uris in build_loader(data.train, batch_size=2, shuffle=True, transform=replace(STRONG, crop=32)):
        assert len(images) == len(targets) == len(uris) == 2
        assert all(t.mask.shape == i.shape[1:] == (32, 32) for i, t in zip(images, targets, strict=True))
    packed = PackedBatch.pack([data.train[0], data.train[1]]).unpack()
    assert torch.equal(packed[1].target.mask, data.train[1].target.mask)
