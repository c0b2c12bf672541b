"""Where the loop runs: its rank among the others, its device, and the place its checkpoints go.

The loop itself knows only the protocol. ``LocalContext`` is this process alone; the workers of Ray Train have one of their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

import torch
from torch import nn

from stratum import storage

STATE_FILE = "state.json"  # of a checkpoint; written last

T = TypeVar("T")


class Context(Protocol):
    """What the loop asks of the world around it. Every rank calls every method equally often."""

    rank: int
    world_size: int
    device: torch.device

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, *, best: bool) -> None:
        """Hands over an epoch's metrics and, on rank 0, a folder to keep as the last (and the best) checkpoint."""

    def latest_checkpoint(self) -> Path | None:
        """A local copy of the last checkpoint, or None at a fresh start."""

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; cheap enough for every step."""

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers of rank 0 (BatchNorm's statistics)."""

    def wrap(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """The module whose backward averages gradients over the ranks."""


class LocalContext:
    """One process alone; checkpoints go to ``<folder>/checkpoints``.

    A checkpoint is copied under a name of its own first, then ``checkpoints.json`` is replaced in one go to say which is the last and
    which the best, then what neither needs is removed. A process that dies in between leaves the old pair in force.
    """

    def __init__(self, folder: str, device: torch.device | str = "cpu") -> None:
        self.rank, self.world_size = 0, 1
        self.device = torch.device(device)
        self._folder = storage.join(folder, "checkpoints")
        self._index = storage.join(self._folder, "checkpoints.json")

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, *, best: bool) -> None:
        """Keeps the checkpoint as the last one, and as the best where it is."""
        if checkpoint is None:
            return
        before = self._read()
        name = f"epoch-{int(metrics['epoch']):05d}-{uuid4().hex[:8]}"
        storage.upload_tree(checkpoint, storage.join(self._folder, name), last=(STATE_FILE,))
        after = {"last": name, "best": name if best else before.get("best", name)}
        storage.write_json(self._index, after)
        for old in set(before.values()) - set(after.values()):
            storage.remove_tree(storage.join(self._folder, old))

    def latest_checkpoint(self) -> Path | None:
        """A local copy of the last checkpoint that was completed."""
        name = self._read().get("last")
        return storage.fetch_tree(storage.join(self._folder, name)) if name else None

    def gather(self, value: T) -> list[T]:
        """This process's value alone."""
        return [value]

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def share_buffers(self, model: nn.Module) -> None:
        """Nothing to share."""

    def wrap(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """The model as it is: with one process there is nothing to average."""
        return model

    def _read(self) -> dict[str, str]:
        return dict(storage.read_json(self._index)) if storage.exists(self._index) else {}
