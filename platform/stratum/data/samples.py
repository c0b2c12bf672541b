"""A lazily read set of labelled images."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stratum import storage
from stratum.data import rle
from stratum.data.class_table import ClassTable
from stratum.data.classmask import count, pack, unpack
from stratum.data.images import DepthRule, decode_image
from stratum.data.records import Record
from stratum.data.sample import Sample, Samples
from stratum_models.interface import InstanceTarget, SemanticTarget, Target

CACHE_BYTES = 256 * 2**20


class SampleSet(Dataset[Sample]):
    """Labelled images by index: decoded when asked for, the decoded images kept in memory up to ``cache_bytes``.

    Masks are kept run-length encoded, or compressed, and drawn for each sample, so memory does not grow with the instances. The set is
    picklable; a copy starts with an empty cache, and reads from the URI where this machine's local copy is not there.
    """

    def __init__(self, records: Sequence[Record], depth: DepthRule | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self.records = tuple(records)
        self.depth = depth
        self.cache_bytes = cache_bytes
        self._reset()

    def _reset(self) -> None:
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"records": self.records, "depth": self.depth, "cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index`` (negative ones count from the end); its tensors are the caller's to change."""
        record = self.records[index]
        return Sample(image=self._image(index % len(self)).clone(), target=self.target(index), uri=record.uri)

    def target(self, index: int) -> Target:
        """The labels of sample ``index`` without reading its image."""
        record = self.records[index]
        height, width = record.size
        if record.mask is not None:
            return SemanticTarget(mask=torch.from_numpy(unpack(record.mask, record.size)).long())
        return InstanceTarget(
            boxes=torch.from_numpy(rle.boxes(record.rles)),
            labels=torch.tensor(record.labels, dtype=torch.int64),
            masks=torch.from_numpy(rle.decode(record.rles, height, width)),
            crowd=torch.tensor(record.crowd, dtype=torch.bool),
        )

    @property
    def uris(self) -> list[str]:
        """Where each image came from."""
        return [r.uri for r in self.records]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """``(H, W)`` of each image."""
        return [r.size for r in self.records]

    @property
    def annotation_count(self) -> int:
        """How many instances all images hold together; none in a set of class masks."""
        return sum(len(r.labels) for r in self.records)

    def subset(self, indices: Iterable[int]) -> "SampleSet":
        """The samples of these indices, in this order."""
        return SampleSet([self.records[i] for i in indices], self.depth, self.cache_bytes)

    def _image(self, index: int) -> Tensor:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        image = read_record(self.records[index], self.depth)
        with self._lock:
            if index not in self._cache:
                self._cache[index] = image
                self._cached += image.numel()
            while self._cached > self.cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].numel()
        return image


def read_record(record: Record, depth: DepthRule | None) -> Tensor:
    """The image of a record, ``uint8 [3, H, W]``; of a tile, its part alone."""
    image = _read_whole(record, depth)
    if record.window is None:
        return image
    (top, left), (height, width) = record.window, record.size
    return image[:, top : top + height, left : left + width].clone()


def _read_whole(record: Record, depth: DepthRule | None) -> Tensor:
    if record.pixels is not None:
        return record.pixels
    uri = record.file or record.uri
    local = record.path is not None and record.path.exists()
    data = record.path.read_bytes() if local and record.path is not None else storage.read_bytes(uri)
    return decode_image(data, depth, uri, rotate=record.rotate)


def from_samples(samples: Samples, labels: Sequence[int | None] | None = None) -> SampleSet:
    """A set of samples that is kept in memory whole. ``labels[old]`` is the new label of a class, None to drop its instances."""
    return SampleSet([_remember(samples[i], labels) for i in range(len(samples))])


def _remember(sample: Sample, labels: Sequence[int | None] | None) -> Record:
    record = _picture(sample)
    target = sample.target
    if not isinstance(target, InstanceTarget):
        raise TypeError(f"{sample.uri}: expected instances, not {type(target).__name__}")
    renamed = [label if labels is None else labels[label] for label in target.labels.tolist()]
    kept = [i for i, label in enumerate(renamed) if label is not None]
    rles = rle.encode(target.masks.numpy())
    return replace(
        record,
        labels=tuple(label for label in renamed if label is not None),
        rles=tuple(rles[i] for i in kept),
        crowd=tuple(bool(target.crowd[i]) for i in kept),
    )


def from_masks(samples: Samples, table: ClassTable) -> SampleSet:
    """A set of samples with class masks that is kept in memory whole, its labels by ``table``."""
    return SampleSet([_remember_mask(samples[i], table) for i in range(len(samples))])


def _remember_mask(sample: Sample, table: ClassTable) -> Record:
    if not isinstance(sample.target, SemanticTarget):
        raise TypeError(f"{sample.uri}: expected a class mask, not {type(sample.target).__name__}")
    labels = table.apply(sample.target.mask.numpy())
    return replace(_picture(sample), mask=pack(labels), pixel_counts=count(labels, len(table.names)))


def _picture(sample: Sample) -> Record:
    picture = hashlib.sha256(sample.image.contiguous().numpy().data).hexdigest()
    size = (sample.image.shape[1], sample.image.shape[2])
    return Record(uri=sample.uri, size=size, digest=picture, picture=picture, pixels=sample.image)
