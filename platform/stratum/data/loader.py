"""Batches for one rank: sharded, shuffled by seed and epoch, and the same whichever worker makes them.

Training (``shuffle=True``): every rank gets the same number of batches of exactly ``batch_size``; what does not fill a batch on all ranks
is left out of this epoch, another part in the next (a small last batch would spoil BatchNorm's statistics). Evaluation: every image
exactly once over all ranks, so the last batch may be smaller and ranks may differ by one image.
"""

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from stratum.data.mosaic import AugmentedSet
from stratum.data.packing import PackedBatch
from stratum.data.sample import Sample, Samples
from stratum.data.transforms import AugmentSpec, TrainTransform
from stratum_models.errors import UserError
from stratum_models.interface import Target

Batch = tuple[list[Tensor], list[Target], list[str]]  # images float32 [3, H, W] in 0..1, labels, URIs
Transform = Callable[[Sample], Sample]


class Draw(NamedTuple):
    """Which sample of which epoch: what a worker needs to know, since it outlives epochs and sees no attribute change."""

    image: int
    epoch: int
    mosaic: bool


@dataclass(frozen=True, kw_only=True)
class Shard:
    """How a data set of ``length`` images is dealt out to one of ``world_size`` ranks."""

    length: int
    batch_size: int
    shuffle: bool
    seed: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"batch_size={self.batch_size}, rank={self.rank}, world_size={self.world_size} do not fit together")
        if self.shuffle and self.batches == 0:
            ranks = f" on each of {self.world_size} workers" if self.world_size > 1 else ""
            fix = f"use a batch size of at most {self.length // self.world_size}" if self.length >= self.world_size else "add images"
            raise UserError(f"a batch of {self.batch_size}{ranks} is larger than the training set of {self.length} images; {fix}")

    @property
    def batches(self) -> int:
        """Number of batches of an epoch on this rank."""
        if self.shuffle:
            return self.length // (self.batch_size * self.world_size)
        return -(-len(range(self.rank, self.length, self.world_size)) // self.batch_size)

    def indices(self, epoch: int) -> list[list[int]]:
        """The image indices of each batch of an epoch."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        own = order[self.rank :: self.world_size].tolist()
        return [own[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.batches)]


class _Batches(Sampler[list[Draw]]):
    """The batches of the current epoch, with the epoch in every index."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.epoch = 0
        self.mosaic = True
        self.start = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, mosaic = self.epoch, self.mosaic
        for batch in self.shard.indices(epoch)[self.start :]:
            yield [Draw(index, epoch, mosaic) for index in batch]

    def __len__(self) -> int:
        return self.shard.batches


class _Items(Dataset[Sample | UserError]):
    """The samples by ``Draw``; a ``UserError`` is handed on as a value, since a worker's traceback would bury its one line."""

    def __init__(self, samples: Samples, transform: Transform | None) -> None:
        self.samples = samples
        self.transform = transform

    def __getitem__(self, draw: Draw) -> Sample | UserError:
        try:
            if isinstance(self.samples, AugmentedSet):
                sample = self.samples.draw(draw.image, draw.epoch, draw.mosaic)
            else:
                sample = self.samples[draw.image]
            return self.transform(sample) if self.transform else sample
        except UserError as error:
            return error

    def __getstate__(self) -> dict[str, bytes]:
        """Plain bytes: torch would pass every tensor that the set caches to a worker as a file descriptor, and run out of them."""
        return {"pickled": pickle.dumps((self.samples, self.transform))}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        self.samples, self.transform = pickle.loads(state["pickled"])


class Loader:
    """Batches of one rank, epoch after epoch; iterating makes ``(images, targets, uris)`` of the epoch that was set last."""

    def __init__(self, items: _Items, shard: Shard, workers: int) -> None:
        self.shard = shard
        self._batches = _Batches(shard)
        self._loader: DataLoader[Sample | UserError] = DataLoader(
            items,
            batch_sampler=self._batches,
            collate_fn=_collate,
            num_workers=workers,
            multiprocessing_context=_worker_context() if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupt if workers else None,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            samples = batch.unpack() if isinstance(batch, PackedBatch) else batch
            images = [sample.image.to(torch.float32).div_(255) for sample in samples]
            yield images, [sample.target for sample in samples], [sample.uri for sample in samples]

    def set_epoch(self, epoch: int, mosaic: bool = True, start: int = 0) -> None:
        """What the next iteration draws: an epoch repeats exactly, whatever was drawn before; see ``AugmentedSet.set_epoch``.

        ``start`` is the number of batches to leave out, since they were drawn before the run was stopped.
        """
        self._batches.epoch = epoch
        self._batches.mosaic = mosaic
        self._batches.start = start


def build_loader(
    sample_set: Samples,
    *,
    batch_size: int,
    transform: AugmentSpec | Transform | None = None,
    shuffle: bool,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """A loader over this rank's share of the set.

    Args:
        sample_set: the samples; an ``AugmentedSet`` augments by itself.
        batch_size: images a batch and rank.
        transform: an ``AugmentSpec`` or what ``build_train_transform`` made is drawn by seed, epoch and index, mosaic and copy-paste
            included; any other callable is applied as it is.
        shuffle: training (see the top of this file for what it means for the last batch) or evaluation.
        seed: of the order and, with an ``AugmentSpec``, of the augmentation.
        workers: processes that make batches; 0 makes them in this one.
        rank: of this process among ``world_size``.
        world_size: number of processes that share the set.

    Raises:
        UserError: a training batch over all ranks is larger than the set.
    """
    if isinstance(transform, TrainTransform):
        sample_set, transform = AugmentedSet(sample_set, transform.spec, transform.seed), None
    elif isinstance(transform, AugmentSpec):
        sample_set, transform = AugmentedSet(sample_set, transform, seed), None
    shard = Shard(length=len(sample_set), batch_size=batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
    return Loader(_Items(sample_set, transform), shard, workers)


def _worker_context() -> BaseContext:
    """How workers start: from a small server process that has imported what they need.

    A plain fork would copy the locks of Ray's and torch's threads, held or not, and may hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C is the main process's to handle: a traceback from each worker would bury its message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Sample | UserError]) -> list[Sample] | PackedBatch | UserError:
    """The samples of a batch, packed where they have to cross to another process; the first error in place of them."""
    samples = []
    for item in items:
        if isinstance(item, UserError):
            return item
        samples.append(item)
    return PackedBatch.pack(samples) if get_worker_info() else samples
