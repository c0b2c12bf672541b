"""Where the loop runs: its rank among the others, its device, and the place its checkpoints go.

The loop itself knows only the protocol. ``LocalContext`` is this process alone; the workers of Ray Train have one of their own.
"""

from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol, TypeVar
from uuid import uuid4

import torch
from torch import nn

from stratum import storage

STATE_FILE = "state.json"  # of a checkpoint; written last

T = TypeVar("T")


class Notice(IntEnum):
    """What the world around a run wants of it between two steps."""

    NONE = 0
    SAVE = 1  # write a checkpoint: a machine will soon be taken away
    STOP = 2  # write one, and end


class StoredCheckpoint(NamedTuple):
    """A local copy of a checkpoint, and where it came from."""

    folder: Path
    uri: str


class Context(Protocol):
    """What the loop asks of the world around it. Every rank calls every method equally often."""

    rank: int
    world_size: int
    device: torch.device

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, *, best: bool) -> None:
        """Hands over an epoch's metrics and, on rank 0, a folder to keep as the last (and the best) checkpoint."""

    def latest_checkpoint(self) -> StoredCheckpoint | None:
        """A local copy of the last checkpoint, or None at a fresh start."""

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; cheap enough for every step."""

    def notice(self) -> Notice:
        """What is wanted now; the same on every rank, and cheap enough for every step."""

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers of rank 0 (BatchNorm's statistics)."""

    def wrap(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """The module whose backward averages gradients over the ranks."""


class LocalContext:
    """One process alone; checkpoints go to ``<folder>/checkpoints``.

    A checkpoint is copied under a name of its own first, then ``checkpoints.json`` is replaced in one go to say which is the last and
    which the best, then what neither needs is removed. A process that dies in between leaves the old pair in force.
    """

    def __init__(self, folder: str, device: torch.device | str = "cpu", stop: Event | None = None) -> None:
        self.rank, self.world_size = 0, 1
        self.device = torch.device(device)
        self._stop = stop or Event()
        self._folder = storage.join(folder, "checkpoints")
        self._index = storage.join(self._folder, "checkpoints.json")

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, *, best: bool) -> None:
        """Keeps the checkpoint as the last one, and as the best where it is."""
        if checkpoint is None:
            return
        before = self._read()
        name = f"epoch-{int(metrics['epoch']):05d}-{uuid4().hex[:8]}"
        try:
            storage.upload_tree(checkpoint, storage.join(self._folder, name), last=(STATE_FILE,))
        except storage.StorageError:
            with suppress(storage.StorageError):
                storage.remove_tree(storage.join(self._folder, name))  # a full disk needs the room
            raise
        after = {"last": name, "best": name if best else before.get("best", name)}
        storage.write_json(self._index, after)
        for old in set(before.values()) - set(after.values()):
            storage.remove_tree(storage.join(self._folder, old))

    def latest_checkpoint(self) -> StoredCheckpoint | None:
        """A local copy of the last checkpoint that was completed."""
        name = self._read().get("last")
        if not name:
            return None
        uri = storage.join(self._folder, name)
        return StoredCheckpoint(storage.fetch_tree(uri), uri)

    def gather(self, value: T) -> list[T]:
        """This process's value alone."""
        return [value]

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def notice(self) -> Notice:
        """To stop, once the event that it was given is set."""
        return Notice.STOP if self._stop.is_set() else Notice.NONE

    def share_buffers(self, model: nn.Module) -> None:
        """Nothing to share."""

    def wrap(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """The model as it is: with one process there is nothing to average."""
        return model

    def _read(self) -> dict[str, str]:
        return dict(storage.read_json(self._index)) if storage.exists(self._index) else {}
