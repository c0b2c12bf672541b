"""Training on Ray: one worker or two, killed or not, the same run comes out."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray.cloudpickle
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from stratum.allocator import keep_freed_memory
from stratum.data.loader import Loader
from stratum.data.source import DataSpec
from stratum.data.transforms import NONE
from stratum.tracking import RunLogger, open_run
from stratum.training.context import Context, LocalContext
from stratum.training.distributed import check_cluster, in_a_task, on_workers, run_distributed, work
from stratum.training.engine import TrainResult, train
from stratum.training.errors import NonFiniteLossError
from stratum.training.evaluation import Batch
from stratum.training.progress import say_nothing
from stratum.training.ray_context import RayContext
from stratum.training.run import claim, run_local
from stratum.training.spec import ModelSpec, RunSpec, TrainSpec
from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import Prediction, SegmentationModel, SemanticPrediction, SemanticTarget, Target

pytestmark = pytest.mark.usefixtures("ray_local")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

TRAIN = TrainSpec(epochs=3, batch_size=4, learning_rate=0.1, ema_decay=0.9, ema_tau=5, warmup_epochs=0)


def run_spec(folder: Path) -> RunSpec:
    data = DataSpec(uri="synthetic://ore?images=10&size=64&seed=0")
    model = ModelSpec(preset="losnet_debug")
    return RunSpec(data=data, model=model, train=TRAIN, augment=NONE, storage=str(folder), experiment="test", name="run", threads=1)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return run_spec(tmp_path)


def with_two(spec: RunSpec) -> RunSpec:
    return replace(spec, num_workers=2, cpus_per_worker=0.5)


def losses(result: TrainResult) -> list[float]:
    return [row["train/loss"] for row in result.history]


def test_ray_and_the_plain_loop_give_the_same_curve(spec: RunSpec) -> None:
    claim(spec)
    ours = run_distributed(spec, say=say_nothing)
    plain = run_local(replace(spec, name="plain"))
    assert losses(ours) == losses(plain)
    assert ours.metrics["val/mask_ap50"] == plain.metrics["val/mask_ap50"]
    assert (Path(spec.storage) / "run" / "package" / "model.json").exists()


class Pixelwise(SegmentationModel):
    """A linear classifier of pixels; its loss is a mean over images of equal size, so the shares of two workers add up exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.num_classes = "semantic", 2
        self.classify = nn.Conv2d(3, 2, 1)
        self.unused = nn.Linear(2, 2)  # as the mask head is, where no image has an instance

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        masks = torch.stack([target.mask for target in targets if isinstance(target, SemanticTarget)])
        return {"loss_pixel": nn.functional.cross_entropy(self.classify(torch.stack(list(images))), masks)}

    def predict(self, images: Sequence[Tensor]) -> list[Prediction]:
        return [SemanticPrediction(probabilities=self.classify(image).softmax(0)) for image in images]


class Share:
    """A rank's share of four batches of four random pictures."""

    def __init__(self, context: Context, poison: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(4, 4, 3, 8, 8, generator=generator)
        self.own = slice(context.rank, None, context.world_size)
        if poison and context.rank == 1:
            self.images[2, self.own] = float("nan")

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int, mosaic: bool = True, start: int = 0) -> None:
        return None

    def __iter__(self) -> Iterator[Batch]:
        for images in self.images:
            own = images[self.own]
            yield list(own), [SemanticTarget(mask=(image.mean(0) > 0.5).long()) for image in own], ["" for _ in own]


Learned = tuple[list[float], dict[str, list[float]]]  # losses and weights


def train_pixelwise(train_spec: TrainSpec, poison: bool, context: Context) -> Learned:
    torch.manual_seed(0)
    model = Pixelwise()
    assert context.gather(context.rank) == list(range(context.world_size))
    result = train(model, Share(context, poison), lambda _: {}, train_spec, context, best_metric="val/miou")
    return losses(result), {name: value.flatten().tolist() for name, value in model.state_dict().items()}


def train_both_stages(train_spec: TrainSpec, context: Context) -> list[dict[str, list[list[float]]]]:
    """The weights of each stage on each rank, after each epoch."""
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=2, overrides={"stage1_share": 0.4})
    seen = []

    def look(evaluated: nn.Module) -> dict[str, float]:
        stages = {name: torch.cat([p.flatten() for p in getattr(evaluated, name).parameters()]) for name in ("stage1", "stage2")}
        seen.append({name: context.gather(weights.tolist()) for name, weights in stages.items()})
        return {}

    train(model, Share(context), look, replace(train_spec, ema_decay=0.0, evaluate_every=1), context, best_metric="val/miou")
    return seen


def share_of_new_pages() -> float:
    """How much of ten tensors of 16 MB, one after the other, the kernel hands out anew, once there was one."""
    keep_freed_memory()  # as a training does
    torch.ones(2**22)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**22)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults * resource.getpagesize() / (10 * 2**24)


@dataclass(frozen=True, kw_only=True)
class ByTwo:
    """What a group of two workers did, one after the other: starting one takes long."""

    whole: list[float]  # losses of a run that nothing happens to
    learned: Learned
    stages: list[dict[str, list[list[float]]]]
    new_pages: float
    failed: str = ""


ACCUMULATED = replace(TRAIN, accumulate=2, batch_size=8)


def do_all(spec: RunSpec, found: Path, context: RayContext) -> None:
    whole = work(spec, None, say_nothing, context)
    context.latest_checkpoint = lambda: None  # type: ignore[method-assign]  # of another network
    with pytest.raises(NonFiniteLossError) as failed:
        train_pixelwise(TRAIN, True, context)
    learned = train_pixelwise(ACCUMULATED, False, context)
    stages = train_both_stages(ACCUMULATED, context)
    if context.rank == 0:
        torch.save({"whole": losses(whole), "learned": learned, "stages": stages, "new_pages": share_of_new_pages()}, found)
    raise failed.value


@pytest.fixture(scope="module")
def by_two(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> ByTwo:
    folder = tmp_path_factory.mktemp("two")
    spec = with_two(run_spec(folder))
    with pytest.raises(NonFiniteLossError) as failed:
        on_workers(partial(do_all, spec, folder / "found.pt"), spec)
    return ByTwo(**torch.load(folder / "found.pt"), failed=str(failed.value))


def test_two_workers_stop_together_and_learn_what_one_does(by_two: ByTwo, tmp_path: Path) -> None:
    assert "step 2 on rank 1 (loss_pixel nan)" in by_two.failed
    losses_by_two, weights_by_two = by_two.learned
    losses_by_one, weights_by_one = train_pixelwise(ACCUMULATED, False, LocalContext(str(tmp_path / "one")))
    assert losses_by_two == pytest.approx(losses_by_one, rel=1e-5)
    for name, value in weights_by_one.items():
        assert weights_by_two[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_stage_2_takes_over_on_all_workers(by_two: ByTwo) -> None:
    assert all(one == other for epoch in by_two.stages for one, other in epoch.values())
    first, changed, last = ({name: ranks[0] for name, ranks in epoch.items()} for epoch in by_two.stages)
    assert first["stage1"] != changed["stage1"] == last["stage1"]  # stage 2 takes over within the second epoch
    assert first["stage2"] != changed["stage2"] != last["stage2"]


def test_workers_keep_the_memory_that_they_free(by_two: ByTwo) -> None:
    assert by_two.new_pages < 0.5  # else 1; another thread may take a piece of what is free, then the heap grows once more


def die_in_epoch(marker: Path, epoch: int) -> None:
    """Makes this process kill itself before the second batch of an epoch, as the system does when memory runs out; once."""
    original = Loader.__iter__

    def deadly(self: Loader) -> Iterator[Batch]:
        for index, batch in enumerate(original(self)):
            if index == 1 and self.shard.shuffle and self._batches.epoch == epoch and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    Loader.__iter__ = deadly  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True)
class Restarted:
    """What came of a group of two of which one was killed, and one, when all was done, found a user's error."""

    found: dict[str, Any]
    runs: list[Any]
    logged: list[tuple[int, float]]
    attempts: int
    failed: str


def mortal_work(spec: RunSpec, run: RunLogger, folder: Path, context: RayContext) -> None:
    last = context.rank == context.world_size - 1
    if last:
        die_in_epoch(folder / "killed", epoch=1)
    result = work(spec, run, say_nothing, context)
    if context.rank == 0:
        torch.save({"epochs": result.epochs, "losses": losses(result), "run": run.run_id}, folder / "found.pt")
    context.gather(0)  # what was found is kept before the group falls
    if last:
        (folder / f"attempt-{uuid4().hex}").touch()
        raise UserError("the label of image 7 is torn")
    context.gather(0)  # waits for the rank that never comes


@pytest.fixture(scope="module")
def restarted(ray_local: None, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Restarted:
    folder = tmp_path_factory.mktemp("restarted")
    tracking = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    spec = with_two(run_spec(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        with open_run("test", "run") as run:
            claim(spec, run.run_id)
            with pytest.raises(UserError) as failed:
                on_workers(partial(mortal_work, spec, run.logger(), folder), spec)
    assert (folder / "killed").exists()
    client = MlflowClient(tracking_uri=tracking)
    return Restarted(
        found=torch.load(folder / "found.pt"),
        runs=list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])),
        logged=[(metric.step, metric.value) for metric in client.get_metric_history(run.run_id, "train/loss")],
        attempts=len(list(folder.glob("attempt-*"))),
        failed=str(failed.value),
    )


def test_a_killed_worker_costs_no_epoch_and_no_second_run(restarted: Restarted, by_two: ByTwo) -> None:
    assert restarted.found["epochs"] == 3
    assert restarted.found["losses"] == by_two.whole
    assert [run.info.run_id for run in restarted.runs] == [restarted.found["run"]]
    assert restarted.runs[0].info.status == "FINISHED"
    assert sorted(restarted.logged) == list(enumerate(by_two.whole, 1))


def test_a_users_error_is_not_tried_again(restarted: Restarted) -> None:
    assert restarted.failed == "the label of image 7 is torn"
    assert restarted.attempts == 1


def assigned() -> dict[str, float]:
    return dict(ray.get_runtime_context().get_assigned_resources())


def test_a_task_has_what_it_asks_for() -> None:
    assert in_a_task(assigned, cpus=0.5, gpu=False) == {"CPU": 0.5}


def test_a_local_ray_is_known_by_its_mark(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    many = replace(spec, num_workers=100)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # workers of a local Ray have one too
    monkeypatch.delenv("STRATUM_LOCAL_RAY", raising=False)
    check_cluster(many)
    assert "waiting for the cluster to grow" in caplog.text
    monkeypatch.setenv("STRATUM_LOCAL_RAY", "1")
    with pytest.raises(UserError, match="100 workers"):
        check_cluster(many)


def test_workers_that_this_machine_cannot_carry_are_refused(spec: RunSpec) -> None:
    with pytest.raises(UserError, match="100 workers with 1 CPU each need more than the 2 CPU there are"):
        run_distributed(replace(spec, num_workers=100))
    with pytest.raises(UserError, match="GPU"):
        run_distributed(replace(spec, use_gpu=True))
