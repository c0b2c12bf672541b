"""jobs/promote.py: the alias goes to the best version within the limits, and the job says why."""

from pathlib import Path

import pytest
import torch
from in_process import exit_code

from stratum.registry import log_package
from stratum.tracking import client_for, open_run, tracking_uri
from stratum_models.catalog import build_model
from stratum_models.package import Manifest, save_package


def register(tmp_path: Path, name: str, quality: float, latency: float | None) -> None:
    torch.manual_seed(round(quality * 100))
    manifest = Manifest(
        preset="losnet_debug",
        classes=("ore",),
        num_classes=1,
        task="instance",
        metrics={"val/mask_ap50": quality},
        cost={} if latency is None else {"cost/latency_ms": latency},
    )
    save_package(tmp_path / "package", build_model("losnet_debug", num_classes=1), manifest)
    with open_run("promote", "train") as run:
        log_package(run.run_id, tmp_path / "package", name)


def test_the_best_within_the_limits_gets_the_alias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for quality, latency in ((0.6, 20.0), (0.8, 70.0)):
        register(tmp_path, "promote-job", quality, latency)
    assert exit_code("promote", "--model", "promote-job", "--metric", "val/mask_ap50", "--max", "cost/latency_ms=40") == 0
    said = capsys.readouterr().out
    assert "version 2 not taken: has cost/latency_ms 70, above 40" in said
    assert "models:/promote-job@champion is version 1, val/mask_ap50 0.6" in said
    assert int(client_for(tracking_uri()).get_model_version_by_alias("promote-job", "champion").version) == 1


def test_versions_without_the_limited_figure_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = ("--model", "promote-unmeasured", "--max", "cost/latency_ms=40")
    register(tmp_path, "promote-unmeasured", 0.9, None)
    assert exit_code("promote", *limited) == 2
    reason = "version 1 has no cost/latency_ms (it has val/mask_ap50)"
    assert capsys.readouterr().err == f"error: no version of promote-unmeasured can be promoted: {reason}\n"
    register(tmp_path, "promote-unmeasured", 0.6, 20.0)
    assert exit_code("promote", *limited) == 0
    said = capsys.readouterr().out
    assert "version 1 not taken: has no cost/latency_ms (it has val/mask_ap50)" in said
    assert "models:/promote-unmeasured@champion is version 2, val/mask_ap50 0.6" in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--model", "no-such-model"), "no version of a model named 'no-such-model'"),
        (("--model", "x", "--max", "latency"), "cost/latency_ms=40"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str) -> None:
    assert exit_code("promote", *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1
