"""The world around the loop in a worker of Ray Train."""

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stratum.disk import require_room
from stratum.training.context import Notice, StoredCheckpoint
from stratum.training.relay import Relay

T = TypeVar("T")
ASK_S = 1.0  # between two questions whether a machine will be taken away
SCORE = "checkpoint_score"  # tells Ray which checkpoint to keep beside the last
SPARE = 2**20  # bytes for what Ray notes about a checkpoint


class RayContext:
    """One worker of a Ray Train run.

    With a relay, it heeds a driver that is told to stop, and machines that will be taken away: rank 0 looks, and tells the others.
    """

    def __init__(self, relay: Relay | None = None) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = int(context.get_world_rank()), int(context.get_world_size())
        self.device: torch.device = ray.train.torch.get_device()
        self._download: tempfile.TemporaryDirectory[str] | None = None
        self._stop = relay.stop_event() if relay and self.rank == 0 else threading.Event()
        self._heeds = relay is not None
        self._asked, self._warned = time.monotonic(), False

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, *, best: bool) -> None:
        """Hands an epoch to Ray, which keeps the last checkpoint and the best. A barrier for all ranks."""
        plain = {name: float(value) for name, value in metrics.items()}
        plain[SCORE] = plain["epoch"] if best else -1.0  # each new best is better than all before
        if checkpoint is not None:
            check_room(checkpoint, ray.train.get_context().get_storage())
        ray.train.report(plain, checkpoint=ray.train.Checkpoint.from_directory(str(checkpoint)) if checkpoint else None)

    def latest_checkpoint(self) -> StoredCheckpoint | None:
        """A local copy of the last checkpoint that Ray has."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._download = tempfile.TemporaryDirectory(prefix="stratum-resume-")
        uri = f"s3://{checkpoint.path}" if checkpoint.filesystem.type_name == "s3" else checkpoint.path
        return StoredCheckpoint(Path(checkpoint.to_directory(self._download.name)), uri)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self._highest(int(flag)))

    def notice(self) -> Notice:
        """To stop, as the driver; to save, once, when a node is about to be taken away."""
        if not self._heeds:
            return Notice.NONE
        asks = self.rank == 0 and not self._warned and time.monotonic() - self._asked > ASK_S
        heard = Notice(self._highest(Notice.STOP if self._stop.is_set() else Notice.SAVE if asks else Notice.NONE))
        if heard is not Notice.SAVE:
            return heard
        self._asked = time.monotonic()
        self._warned = ray.train.get_preemption_info() is not None  # asked of Ray by all ranks together
        return Notice.SAVE if self._warned else Notice.NONE

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank rank 0's BatchNorm statistics; DistributedDataParallel does so only at the next forward pass."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """The model in DistributedDataParallel, with synchronised BatchNorm where that is asked."""
        if self.world_size == 1:
            return model
        if sync_bn:
            model = synchronised(model)
        devices = [self.device] if self.device.type == "cuda" else None
        # An image without instances leaves the mask head without gradient.
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)

    def _highest(self, value: int) -> int:
        """The highest value of all ranks."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared.item())


def synchronised(model: nn.Module) -> nn.Module:
    """The model with BatchNorm over all ranks. timm's own conversion: PyTorch's loses the activation that timm's BatchNorm holds."""
    converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def check_room(checkpoint: Path, storage: Any) -> None:
    """Refuses a checkpoint that finds no room in a folder of this machine: on a full disk, Ray would empty its list of the earlier ones.

    Raises:
        UserError: too little space is left.
    """
    if storage.storage_filesystem.type_name == "local":
        needed = sum(path.stat().st_size for path in checkpoint.iterdir()) + SPARE
        require_room(Path(storage.storage_fs_path), needed, "for a checkpoint: free some, then go on with --resume")
