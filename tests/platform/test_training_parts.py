"""Schedules, EMA, optimiser groups and specs against their formulas."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stratum.data.source import DataSpec
from stratum.data.transforms import STRONG
from stratum.training.ema import Ema, ramped_decay
from stratum.training.errors import NonFiniteLossError
from stratum.training.journal import Journal
from stratum.training.optim import build_optimizer, parameter_groups
from stratum.training.progress import Progress, duration
from stratum.training.ray_context import synchronised
from stratum.training.schedule import learning_rate
from stratum.training.spec import ModelSpec, RunSpec, TrainSpec, from_dict, to_dict
from stratum_models.catalog import build_model
from stratum_models.errors import UserError

PLAIN = TrainSpec(epochs=10, learning_rate=0.5, warmup_epochs=0, schedule="constant")


def rates(**changes: Any) -> list[float]:
    """The learning rates of 10 epochs of 10 steps."""
    return [learning_rate(step, 10, replace(PLAIN, **changes)) for step in range(100)]


def test_constant() -> None:
    assert rates() == [0.5] * 100


def test_warm_up_is_linear() -> None:
    found = rates(warmup_epochs=2, warmup_factor=0.1)
    assert found[0] == pytest.approx(0.05)
    assert found[10] == pytest.approx(0.5 * 0.55)
    assert found[20:] == [0.5] * 80


def test_steps_fall_at_their_shares_of_the_run() -> None:
    found = rates(schedule="step", milestones=(0.661, 0.806), gamma=0.1)
    assert found[:67] == [0.5] * 67
    assert found[67:81] == pytest.approx([0.05] * 14)
    assert found[81:] == pytest.approx([0.005] * 19)


def test_cosine() -> None:
    found = rates(schedule="cosine", final_factor=0.1)
    assert found == pytest.approx([0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2) for step in range(100)])


def test_poly() -> None:
    assert rates(schedule="poly", power=0.9) == pytest.approx([0.5 * (1 - step / 100) ** 0.9 for step in range(100)])


def test_cosine_is_pytorchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.05)
    theirs = []
    for _ in range(100):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(schedule="cosine", final_factor=0.1) == pytest.approx(theirs)


def test_ema_follows_its_formula() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    ema = Ema(model, decay=0.9, tau=3.0)
    expected = model[0].weight.detach().double()
    for step in range(1, 6):
        with torch.no_grad():
            model[0].weight += step
        model(torch.rand(4, 2))
        ema.update(model)
        decay = 0.9 * (1 - math.exp(-step / 3.0))
        assert ramped_decay(step, 0.9, 3.0) == pytest.approx(decay)
        expected = decay * expected + (1 - decay) * model[0].weight.detach().double()
    torch.testing.assert_close(ema.model[0].weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert int(ema.model[1].num_batches_tracked) == 5
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_norms_and_biases_have_a_weight_decay_of_their_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    weights, others = parameter_groups(model, TrainSpec(weight_decay=0.1, norm_weight_decay=0.02))
    assert (weights["weight_decay"], others["weight_decay"]) == (0.1, 0.02)
    assert [id(p) for p in weights["params"]] == [id(model[0].weight), id(model[3].weight)]  # type: ignore[attr-defined]
    assert len(others["params"]) == 6  # type: ignore[arg-type]


def test_frozen_parameters_are_left_alone() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    model.bias.requires_grad_(True)
    assert [group["params"] for group in build_optimizer(model, TrainSpec()).param_groups] == [[model.bias]]


def test_sgd_and_adamw_take_their_options() -> None:
    sgd = build_optimizer(nn.Linear(2, 2), TrainSpec(optimizer="sgd", nesterov=True, momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["nesterov"], sgd.defaults["momentum"]) == (True, 0.8)
    adamw = build_optimizer(nn.Linear(2, 2), TrainSpec(optimizer="adamw"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be above 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"milestones": (0.5, 60)}, "milestones is .* shares of the run"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov is True"),
    ],
)
def test_a_spec_names_what_is_wrong_with_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainSpec(**values)


def test_batches_must_fit_the_data_and_the_workers() -> None:
    spec = TrainSpec(batch_size=8, accumulate=2)
    spec.check_batch(8, 2)
    assert spec.part_size(2) == 2
    with pytest.raises(UserError, match="batch size 8 is larger than the 7 training images: choose at most 7"):
        spec.check_batch(7, 1)
    with pytest.raises(UserError, match="does not split over 3 workers x 2 parts: choose a multiple of 6"):
        spec.check_batch(100, 3)


def test_a_run_survives_json() -> None:
    data = DataSpec(uri="synthetic://ore", classes="ore")
    model = ModelSpec(preset="losnet_debug", overrides={"head_convs": 1})
    spec = RunSpec(data=data, model=model, train=PLAIN, augment=STRONG, storage="/runs", experiment="e", name="n")
    assert from_dict(json.loads(json.dumps(to_dict(spec)))) == spec


def test_synchronised_batchnorm_needs_gpus() -> None:
    with pytest.raises(UserError, match="sync_bn"):
        RunSpec(data=DataSpec(uri="d"), model=ModelSpec(), train=TrainSpec(sync_bn=True), storage="s", experiment="e", name="n")


@pytest.mark.parametrize(("name", "options"), [("losnet_debug", {"score_threshold": 0.0}), ("slag_deeplab_debug", {})])
def test_synchronised_batchnorm_keeps_the_activations(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=2, overrides=options).eval()
    image = torch.rand(3, 64, 64)
    before = model.predict([image])[0]
    after = synchronised(model).predict([image])[0]  # type: ignore[operator]
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    for value, wanted in zip(vars(after).values(), vars(before).values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_progress_says_what_one_wants_to_know() -> None:
    lines: list[str] = []
    progress = Progress(lines.append, epochs=4, first_epoch=1, interval_s=0)
    progress.step(1, 0.5, {"loss_mask": 0.25}, 12.0)
    progress.epoch(1, {"train/loss": 0.5, "train/loss_mask": 0.25, "train/images_per_s": 12.0, "val/mask_ap50": 0.125})
    assert lines[0] == "epoch 2/4  50%  loss_mask 0.25  12.0 images/s"
    assert lines[1].startswith("epoch 2/4  loss 0.5 loss_mask 0.25  12.0 images/s  val/mask_ap50 0.125  ")
    assert lines[1].endswith(" left")
    assert [duration(s) for s in (9.6, 75, 7500)] == ["10s", "1m15s", "2h05m"]


def test_a_journal_logs_every_epoch_once() -> None:
    class Kept:
        def __init__(self) -> None:
            self.rows: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.rows.append((step, metrics))

    kept = Kept()
    journal = Journal(kept, known=[1])  # type: ignore[arg-type]
    for epoch in (1, 2, 2, 3):
        journal({"epoch": float(epoch), "val/mask_ap": math.nan}, epoch)
    assert kept.rows == [(2, {"epoch": 2.0}), (3, {"epoch": 3.0})]


def test_the_error_travels_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(NonFiniteLossError(7, 1, {"loss_mask": math.inf})))
    assert str(error).startswith("the loss is not finite at step 7 on rank 1 (loss_mask inf)")


def test_freed_memory_is_kept() -> None:
    """Page faults tell: a tensor that is made where another was freed has none."""
    program = """
import resource, torch
from stratum.allocator import keep_freed_memory
assert keep_freed_memory()
torch.set_num_threads(1)
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert int(said.stdout) < 100, "64 MiB are 16,384 pages"
