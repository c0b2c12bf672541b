"""The loop on a network of a few weights: it goes on where it stopped, adds gradients up, averages, and stops when it should."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stratum.training.context import STATE_FILE, LocalContext
from stratum.training.engine import TrainResult, train
from stratum.training.errors import NonFiniteLossError, StoppedError
from stratum.training.evaluation import Batch
from stratum.training.spec import TrainSpec
from stratum_models.errors import UserError
from stratum_models.interface import Prediction, SegmentationModel, SemanticPrediction, SemanticTarget, Target

IMAGES = 12


class Pixelwise(SegmentationModel):
    """One weight a colour and one bias; its loss is a mean over images of equal size, so batches add up exactly."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.task, self.num_classes = "semantic", 2
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.classify = nn.Conv2d(3, 2, 1)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        logits = self.classify(self.norm(torch.stack(list(images))))
        masks = torch.stack([target.mask for target in targets if isinstance(target, SemanticTarget)])
        return {"loss_pixel": nn.functional.cross_entropy(logits, masks), "loss_size": 1e-3 * logits.square().mean()}

    def predict(self, images: Sequence[Tensor]) -> list[Prediction]:
        return [SemanticPrediction(probabilities=self.classify(self.norm(image[None]))[0].softmax(0)) for image in images]


class Pictures:
    """Random pictures whose bright pixels are class 1, in an order of each epoch's own."""

    def __init__(self, batch_size: int, *, noise: float = 0.0, poison_epoch: int | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.rand(IMAGES, 3, 8, 8, generator=generator)
        self.masks = (self.images.mean(1) > 0.5).long()
        self.batch_size, self.noise, self.poison_epoch = batch_size, noise, poison_epoch
        self.epoch, self.start, self.mosaics = 0, 0, dict[int, bool]()

    def __len__(self) -> int:
        return IMAGES // self.batch_size

    def set_epoch(self, epoch: int, mosaic: bool = True, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.mosaics[epoch] = mosaic

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch))
        for chosen in order.split(self.batch_size)[self.start :]:
            images = self.images[chosen] + self.noise * torch.randn(len(chosen), 3, 8, 8)
            if self.epoch == self.poison_epoch:
                images[0] = float("inf")
            yield list(images), [SemanticTarget(mask=mask) for mask in self.masks[chosen]], [str(i) for i in chosen.tolist()]


def accuracy(model: nn.Module) -> dict[str, float]:
    pictures = Pictures(IMAGES)
    assert isinstance(model, SegmentationModel)
    model.eval()
    with torch.no_grad():
        found = torch.stack([p.probabilities.argmax(0) for p in model.predict(pictures.images) if isinstance(p, SemanticPrediction)])
    return {"val/miou": (found == pictures.masks).float().mean().item()}


SPEC = TrainSpec(epochs=5, batch_size=4, learning_rate=0.2, ema_decay=0.9, ema_tau=5, schedule="cosine", warmup_epochs=1)


def run(
    folder: Path,
    spec: TrainSpec = SPEC,
    pictures: Pictures | None = None,
    *,
    norm: bool = True,
    logged: list[int] | None = None,
    stop: threading.Event | None = None,
) -> tuple[TrainResult, nn.Module]:
    torch.manual_seed(0)
    model = Pixelwise(norm=norm)
    steps: list[int] = [] if logged is None else logged
    result = train(
        model,
        pictures or Pictures(spec.batch_size // spec.accumulate, noise=0.1),
        accuracy,
        spec,
        LocalContext(str(folder), stop=stop),
        best_metric="val/miou",
        log=lambda _row, epoch: steps.append(epoch),
    )
    return result, model


def losses(result: TrainResult) -> list[float]:
    return [row["train/loss"] for row in result.history]


def test_the_loss_falls_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    result, model = run(tmp_path)
    assert losses(result)[-1] < 0.8 * losses(result)[0]
    assert result.best_epoch is not None
    assert accuracy(model)["val/miou"] == result.metrics["val/miou"] == max(row["val/miou"] for row in result.history)
    row = result.history[0]
    assert row["train/loss"] == pytest.approx(row["train/loss_pixel"] + row["train/loss_size"])
    assert {"train/lr", "train/images_per_s", "train/epoch_s", "train/memory_mb"} <= row.keys()
    assert result.metrics["cost/train_s"] == pytest.approx(sum(r["train/epoch_s"] + r["val/seconds"] for r in result.history))


def test_the_same_seed_repeats_exactly(tmp_path: Path) -> None:
    first, second, other = (
        run(tmp_path / name, spec)[0] for name, spec in (("a", SPEC), ("b", SPEC), ("c", dataclasses.replace(SPEC, seed=1)))
    )
    assert losses(first) == losses(second) != losses(other)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path, optimizer: str) -> None:
    spec = dataclasses.replace(SPEC, optimizer=optimizer)
    whole, whole_model = run(tmp_path / "whole", spec)

    class Killed(Exception):
        pass

    class Stopping(Pictures):
        def __iter__(self) -> Iterator[Batch]:
            for index, batch in enumerate(super().__iter__()):
                if self.epoch == 3 and index == 1:
                    raise Killed
                yield batch

    logged: list[int] = []
    with pytest.raises(Killed):
        run(tmp_path / "parts", spec, Stopping(4, noise=0.1), logged=logged)
    torch.rand(7)  # whatever else has drawn numbers in between
    resumed, model = run(tmp_path / "parts", spec, logged=logged)
    assert logged == [1, 2, 3, 1, 2, 3, 4, 5]  # what may have been lost with the process comes again
    assert losses(resumed) == losses(whole)
    assert [row["val/miou"] for row in resumed.history] == [row["val/miou"] for row in whole.history]
    assert resumed.best_epoch == whole.best_epoch
    for name, value in whole_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_told_to_stop_goes_on_with_the_next_step(tmp_path: Path, accumulate: int) -> None:
    spec = dataclasses.replace(SPEC, accumulate=accumulate, checkpoint_every=2)
    size = spec.batch_size // accumulate
    whole, whole_model = run(tmp_path / "whole", spec, Pictures(size))
    told = threading.Event()

    class Telling(Pictures):
        def __iter__(self) -> Iterator[Batch]:
            for index, batch in enumerate(super().__iter__()):
                if (self.epoch, index) == (3, accumulate):
                    told.set()  # before the second of three steps
                yield batch

    logged: list[int] = []
    with pytest.raises(StoppedError, match="33% of epoch 4 is done") as stopped:
        run(tmp_path / "parts", spec, Telling(size), logged=logged, stop=told)
    assert (stopped.value.epoch, stopped.value.share) == (3, 1 / 3)
    torch.rand(7)
    again = threading.Event()
    again.set()
    with pytest.raises(StoppedError, match="33%"):  # at once: nothing is lost, nothing done twice
        run(tmp_path / "parts", spec, Pictures(size), logged=logged, stop=again)
    resumed, model = run(tmp_path / "parts", spec, Pictures(size), logged=logged)
    assert logged == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4, 5]
    assert losses(resumed) == losses(whole)
    assert [row["val/miou"] for row in resumed.history] == [row["val/miou"] for row in whole.history]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole_model.state_dict().items())
    assert resumed.history[3]["train/images_per_s"] > 0


def cut(data: bytes) -> bytes:
    return data[:-10]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip, None])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "best.safetensors", "optimizer.pt", STATE_FILE])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    spec = dataclasses.replace(SPEC, epochs=1)
    run(tmp_path, spec)
    index = json.loads((tmp_path / "checkpoints" / "checkpoints.json").read_text())
    path = tmp_path / "checkpoints" / index["last"] / name
    good = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(good))
    with pytest.raises(UserError, match=f"{name}: damaged") as refused:
        run(tmp_path, spec)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    path.write_bytes(good)
    run(tmp_path, spec)


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    again, _ = run(tmp_path, pictures=Pictures(4, poison_epoch=0))
    assert again.history == first.history


def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, ema_decay=0, batch_size=12)
    whole = run(tmp_path / "whole", spec, Pictures(12), norm=False)[1].state_dict()
    parts = run(tmp_path / "parts", dataclasses.replace(spec, accumulate=4), Pictures(3), norm=False)[1].state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, epochs=1, batch_size=12, ema_decay=0, momentum=0, weight_decay=0, warmup_epochs=0, clip_norm=1e-3)
    torch.manual_seed(0)
    before = Pixelwise().state_dict()
    after = run(tmp_path, spec, Pictures(12), norm=False)[1].state_dict()
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm().item()
    assert moved == pytest.approx(spec.learning_rate * 1e-3, rel=1e-3)


def test_the_checkpoints_hold_no_pickle_and_only_two_are_kept(tmp_path: Path) -> None:
    result, _ = run(tmp_path)
    index = json.loads((tmp_path / "checkpoints" / "checkpoints.json").read_text())
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert folders == set(index.values())
    last, best = ((tmp_path / "checkpoints" / index[which]) for which in ("last", "best"))
    assert {p.name for p in last.iterdir()} == {"model.safetensors", "ema.safetensors", "best.safetensors", "optimizer.pt", STATE_FILE}
    torch.load(last / "optimizer.pt", weights_only=True)
    assert json.loads((last / STATE_FILE).read_text())["state"]["epoch"] == 5
    assert json.loads((best / STATE_FILE).read_text())["state"]["epoch"] == (result.best_epoch or 0) + 1


def test_an_upload_that_was_cut_short_leaves_the_last_checkpoint_in_force(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    cut = tmp_path / "checkpoints" / "epoch-00006-cut"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half")
    assert run(tmp_path)[0].history == first.history


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 6 on rank 0 \(loss_pixel nan") as caught:
        run(tmp_path, pictures=Pictures(4, poison_epoch=2), norm=False)
    assert caught.value.step == 6
    assert caught.value.rank == 0
    assert set(caught.value.terms) == {"loss_pixel", "loss_size"}


def test_a_run_without_progress_stops_early(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, learning_rate=1e-12, patience=2)
    result, _ = run(tmp_path, spec, norm=False)
    assert result.epochs == 3
    assert result.best_epoch == 2  # of equals, the last
    assert result.kept_epoch == 3
    assert dataclasses.replace(result, best_epoch=None).kept_epoch == 3  # nothing was evaluated
    assert result.stop_reason.startswith("early stopping: val/miou")


class InTwoParts(Pixelwise):
    """Something of it learns only after two fifths of training."""

    fraction = 0.0

    @property
    def unlearnt(self) -> str:
        return "the rest" if self.fraction < 0.5 else ""

    def set_progress(self, fraction: float) -> None:
        self.fraction = fraction


def test_the_best_is_one_of_the_last_part_of_training(tmp_path: Path) -> None:
    def trained(folder: Path, values: list[float], **changes: object) -> TrainResult:
        left = iter(values)
        spec = dataclasses.replace(SPEC, ema_decay=0.0, **changes)  # type: ignore[arg-type]
        context = LocalContext(str(folder))
        return train(InTwoParts(), Pictures(4), lambda _: {"val/miou": next(left)}, spec, context, best_metric="val/miou")

    result = trained(tmp_path / "whole", [0.9, 0.8, 0.3, 0.5, 0.4])
    assert (result.best_epoch, result.metrics["val/miou"], result.stop_reason) == (3, 0.5, "all epochs done")
    patient = trained(tmp_path / "patient", [0.9, 0.8, 0.7, 0.5, 0.4], patience=1)
    assert (patient.epochs, patient.best_epoch) == (4, 2)  # it waits for the last part
    late = trained(tmp_path / "late", [0.9], time_budget_s=1e-9)
    assert late.stop_reason.endswith("stopped after 1 of 5 epochs; the rest has not learnt yet")


def test_a_spent_time_budget_stops_the_run_with_an_evaluation(tmp_path: Path) -> None:
    result, _ = run(tmp_path, dataclasses.replace(SPEC, time_budget_s=1e-9, evaluate_every=5))
    assert result.epochs == 1
    assert "time budget" in result.stop_reason
    assert "val/miou" in result.history[0]


def test_evaluation_comes_every_n_epochs_and_at_the_end(tmp_path: Path) -> None:
    result, _ = run(tmp_path, dataclasses.replace(SPEC, evaluate_every=2))
    assert ["val/miou" in row for row in result.history] == [False, True, False, True, True]


def test_the_last_epochs_go_without_mosaic(tmp_path: Path) -> None:
    pictures = Pictures(4)
    run(tmp_path, dataclasses.replace(SPEC, mosaic_off_last=2), pictures)
    assert pictures.mosaics == {0: True, 1: True, 2: True, 3: False, 4: False}


def test_bf16_trains(tmp_path: Path) -> None:
    result, model = run(tmp_path, dataclasses.replace(SPEC, precision="bf16"))
    assert losses(result)[-1] < losses(result)[0]
    assert next(model.parameters()).dtype == torch.float32


class Scheduled(Pixelwise):
    """Keeps how much of training is done in a buffer, as ARSM keeps its temperature, and hears every change."""

    progress: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("progress", torch.tensor(-1.0))
        self.heard: list[float] = []

    def set_progress(self, fraction: float) -> None:
        self.heard.append(fraction)
        self.progress.fill_(fraction)


@pytest.mark.parametrize("ema_decay", [0.0, 0.999])
def test_a_model_that_follows_a_schedule_is_evaluated_where_training_stands(tmp_path: Path, ema_decay: float) -> None:
    seen: list[float] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Scheduled)
        seen.append(model.progress.item())
        return {"val/miou": float(len(seen))}  # the last is the best

    def trained(folder: Path, epochs: int) -> Scheduled:
        model = Scheduled()
        spec = dataclasses.replace(SPEC, epochs=epochs, ema_decay=ema_decay, ema_tau=1)
        train(model, Pictures(4), evaluate, spec, LocalContext(str(folder)), best_metric="val/miou")
        return model

    model = trained(tmp_path, 5)
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])  # an average of the buffer would lag behind
    assert list(dict.fromkeys(model.heard)) == pytest.approx([step / 15 for step in range(16)])
    assert model.progress.item() == 1.0  # what the package gets
    resumed = trained(tmp_path, 6)  # from epoch 5 on
    assert resumed.heard[0] == pytest.approx(15 / 18)
    assert resumed.progress.item() == 1.0
