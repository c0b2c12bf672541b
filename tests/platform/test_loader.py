"""Sharding, repeatability and worker processes of the loader."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratum.data.loader import Batch, Shard, build_loader
from stratum.data.packing import PackedBatch
from stratum.data.sample import Sample
from stratum.data.synthetic import SyntheticSet, parse_uri
from stratum.data.transforms import STRONG, build_train_transform, resolve_augmentation
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget, SemanticTarget

SPEC = parse_uri("synthetic://ore?images=10&size=64&rocks=12")
SMALL = replace(STRONG, crop=48, short_sides=(64,), mosaic=0.5, copy_paste=0.5)


@pytest.fixture(scope="module")
def samples() -> SyntheticSet:
    return SyntheticSet(SPEC, range(10))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch[2] for batch in first] == [batch[2] for batch in second]
    for (images, targets, _), (others, labels, _) in zip(first, second, strict=True):
        for image, other in zip(images, others, strict=True):
            assert torch.equal(image, other)
        for target, label in zip(targets, labels, strict=True):
            assert isinstance(target, InstanceTarget)
            assert isinstance(label, InstanceTarget)
            assert torch.equal(target.masks, label.masks)
            assert torch.equal(target.boxes, label.boxes)


def shards(length: int, batch_size: int, shuffle: bool, world_size: int, seed: int = 0) -> list[Shard]:
    return [
        Shard(length=length, batch_size=batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@settings(deadline=None)
@given(length=st.integers(0, 60), batch_size=st.integers(1, 9), world_size=st.integers(1, 7))
def test_evaluation_covers_each_image_once(length: int, batch_size: int, world_size: int) -> None:
    dealt = [batch for shard in shards(length, batch_size, False, world_size) for batch in shard.indices(0)]
    assert sorted(i for batch in dealt for i in batch) == list(range(length))
    assert all(1 <= len(batch) <= batch_size for batch in dealt)
    assert all(len(shard.indices(0)) == shard.batches for shard in shards(length, batch_size, False, world_size))


@settings(deadline=None)
@given(data=st.data(), batch_size=st.integers(1, 9), world_size=st.integers(1, 7), epoch=st.integers(0, 1000))
def test_training_deals_full_and_disjoint_batches(data: st.DataObject, batch_size: int, world_size: int, epoch: int) -> None:
    length = data.draw(st.integers(batch_size * world_size, 150))
    dealt = [shard.indices(epoch) for shard in shards(length, batch_size, True, world_size)]
    assert {len(batches) for batches in dealt} == {length // (batch_size * world_size)}
    flat = [i for batches in dealt for batch in batches for i in batch]
    assert all(len(batch) == batch_size for batches in dealt for batch in batches)
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(length))


def test_what_one_epoch_leaves_out_another_shows() -> None:
    (shard,) = shards(10, 4, True, 1)
    seen = {i for epoch in range(12) for batch in shard.indices(epoch) for i in batch}
    assert seen == set(range(10))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    (first,), (other,) = shards(50, 5, True, 1), shards(50, 5, True, 1, seed=1)
    assert first.indices(3) == first.indices(3)
    assert first.indices(3) != first.indices(4)
    assert first.indices(3) != other.indices(3)


def test_a_batch_larger_than_the_set_is_refused(samples: SyntheticSet) -> None:
    with pytest.raises(UserError, match=r"batch of 16 is larger than the training set of 10 images.*at most 10"):
        build_loader(samples, batch_size=16, shuffle=True)
    with pytest.raises(UserError, match=r"batch of 6 on each of 2 workers.*10 images.*at most 5"):
        build_loader(samples, batch_size=6, shuffle=True, rank=1, world_size=2)
    assert len(build_loader(samples, batch_size=16, shuffle=False)) == 1


def test_batches_hold_images_in_0_to_1(samples: SyntheticSet) -> None:
    batches = list(build_loader(samples, batch_size=4, shuffle=False))
    assert [len(images) for images, _, _ in batches] == [4, 4, 2]
    images, targets, uris = batches[0]
    assert uris == samples.uris[:4]
    assert images[0].dtype == torch.float32
    assert 0 <= float(images[0].min()) < float(images[0].max()) <= 1
    torch.testing.assert_close((images[1] * 255).round().to(torch.uint8), samples[1].image)
    assert isinstance(targets[1], InstanceTarget)
    assert torch.equal(targets[1].masks, samples[1].target.masks)  # type: ignore[union-attr]


def test_worker_processes_make_the_same_batches_and_follow_the_epoch(samples: SyntheticSet) -> None:
    """The worker draws scenes and augmentation afresh: equality also shows that neither depends on the process."""
    plain = build_loader(samples, batch_size=4, transform=SMALL, shuffle=True, seed=3)
    worked = build_loader(samples, batch_size=4, transform=SMALL, shuffle=True, seed=3, workers=1)
    epochs = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        worked.set_epoch(epoch)
        epochs.append(list(worked))
        assert_same(list(plain), epochs[-1])
    assert [batch[2] for batch in epochs[0]] != [batch[2] for batch in epochs[1]]


def test_a_resumed_run_sees_what_it_would_have_seen(samples: SyntheticSet) -> None:
    running = build_loader(samples, batch_size=3, transform=build_train_transform(SMALL, 5), shuffle=True, rank=1, world_size=2)
    for epoch in range(3):
        running.set_epoch(epoch, mosaic=epoch < 2)
        last = list(running)
    resumed = build_loader(
        SyntheticSet(SPEC, range(10)), batch_size=3, transform=build_train_transform(SMALL, 5), shuffle=True, rank=1, world_size=2
    )
    resumed.set_epoch(2, mosaic=False)
    assert_same(last, list(resumed))


def test_the_last_epochs_go_without_mosaic(samples: SyntheticSet) -> None:
    loader = build_loader(samples, batch_size=10, transform=replace(SMALL, mosaic=1), shuffle=False)
    with_mosaic = next(iter(loader))[0]
    loader.set_epoch(0, mosaic=False)
    assert not torch.equal(with_mosaic[0], next(iter(loader))[0][0])


def test_a_user_error_keeps_its_one_line(samples: SyntheticSet) -> None:
    def refuse(sample: Sample) -> Sample:
        resolve_augmentation(sample.uri)
        return sample

    with pytest.raises(UserError, match=r"^augmentation 'synthetic://ore.*' is not known"):
        list(build_loader(samples, batch_size=2, transform=refuse, shuffle=False))


def test_packing_keeps_samples_of_different_sizes(samples: SyntheticSet) -> None:
    empty = InstanceTarget(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 20, 30, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
    )
    mixed = [samples[0], Sample(image=torch.ones(3, 20, 30, dtype=torch.uint8), target=empty, uri="mem://empty"), samples[1]]
    back = pickle.loads(pickle.dumps(PackedBatch.pack(mixed))).unpack()
    for before, after in zip(mixed, back, strict=True):
        assert torch.equal(before.image, after.image)
        assert before.uri == after.uri
        assert isinstance(before.target, InstanceTarget)
        for name in ("boxes", "labels", "masks", "crowd"):
            assert torch.equal(getattr(before.target, name), getattr(after.target, name))


def test_packing_keeps_semantic_labels() -> None:
    masks = [torch.randint(0, 4, (9 + k, 12)) for k in range(2)]
    mixed = [Sample(image=torch.zeros(3, *m.shape, dtype=torch.uint8), target=SemanticTarget(mask=m), uri="mem://s") for m in masks]
    for mask, sample in zip(masks, PackedBatch.pack(mixed).unpack(), strict=True):
        assert torch.equal(sample.target.mask, mask)  # type: ignore[union-attr]
