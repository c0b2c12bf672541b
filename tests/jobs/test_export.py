"""jobs/export.py: files that onnxruntime runs like PyTorch, at sizes of one's own; nothing half-written, one line for a mistake."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from in_process import exit_code

from stratum import storage
from stratum.inference.options import with_options
from stratum_models.catalog import build_model
from stratum_models.interface import SegmentationModel
from stratum_models.package import Manifest, load_package, save_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small LosNet that has its own statistics in every BN."""
    torch.manual_seed(0)
    model = build_model("losnet_debug", num_classes=2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    manifest = Manifest(preset="losnet_debug", classes=("ore", "slag"), num_classes=2, task="instance", score_threshold=0.25)
    folder = tmp_path_factory.mktemp("trained") / "package"
    save_package(folder, model, manifest)
    return folder


def agrees(session: Any, model: SegmentationModel, *sizes: tuple[int, int, int]) -> None:
    for batch, height, width in sizes:
        images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            expected = model.dense_outputs(images)
        for (name, theirs), ours in zip(expected.items(), session.run(list(expected), {"images": images.numpy()}), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_a_package_runs_at_any_size(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "losnet.onnx"
    assert exit_code("export", "--package", package, "--output", out, "--size", "64x96") == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    agrees(session, load_package(package).model, (1, 64, 96), (3, 96, 64), (1, 32, 160))
    about = json.loads(session.get_modelmeta().custom_metadata_map["stratum"])
    assert (about["preset"], about["classes"], about["score_threshold"], about["divisor"]) == ("losnet_debug", ["ore", "slag"], 0.25, 32)
    said = capsys.readouterr().out
    assert "batch, height and width: open" in said
    assert f"written: {out}" in said
    assert [path.name for path in out.parent.iterdir()] == ["losnet.onnx"]


def test_a_fixed_size_to_s3(s3_env: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"s3://{s3_env.bucket()}/exports/fm.onnx"
    assert exit_code("export", "--preset", "fm_hrnet_debug", "--output", uri, "--size", "64x64", "--no-dynamic", "--classes", "3") == 0
    session = onnxruntime.InferenceSession(storage.read_bytes(uri), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 64, 64]
    assert [(out.name, out.shape) for out in session.get_outputs()] == [("logits", [1, 3, 64, 64])]
    assert "fixed at 1x64x64" in capsys.readouterr().out


def test_two_stages_are_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pipeline.onnx"
    arguments = ("--preset", "two_stage_debug", "--set", "prior=yes", "--classes", "3", "--size", "32x32", "--no-dynamic")
    assert exit_code("export", *arguments, "--output", out) == 0
    paths = [tmp_path / f"pipeline.stage{number}.onnx" for number in (1, 2)]
    assert sorted(tmp_path.iterdir()) == paths
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths]
    assert [session.get_inputs()[0].shape for session in sessions] == [[1, 3, 32, 32], [1, 6, 32, 32]]
    assert "stage2 logits" in capsys.readouterr().out


def test_a_gate_of_random_draws_is_written_as_its_expectation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    drawn = {"gate": "monte_carlo", "samples": 2, "temperature": 0.5}
    manifest = Manifest(preset="hrnet_arsm_debug", overrides=drawn, classes=("a", "b"), num_classes=2, task="semantic")
    save_package(tmp_path / "package", build_model("hrnet_arsm_debug", num_classes=2, overrides=drawn), manifest)
    flags = ("--package", tmp_path / "package", "--size", "32x64", "--no-dynamic", "--set", "temperature=2")
    assert exit_code("export", *flags, "--output", tmp_path / "a.onnx") == 0
    assert "gate=expected is written in place of gate=monte_carlo" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    expected = with_options(load_package(tmp_path / "package"), {"gate": "expected", "temperature": "2"}).model
    agrees(session, expected, (1, 32, 64))


def test_a_file_that_says_something_else_gets_no_name(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "losnet.onnx"
    out.write_text("as before")
    monkeypatch.setattr("stratum.onnx_export.TOLERANCE", -1.0)
    assert exit_code("export", "--package", package, "--output", out, "--size", "32x32", "--no-dynamic") == 2
    assert "onnxruntime differs from PyTorch by" in capsys.readouterr().err
    assert out.read_text() == "as before"
    assert [path.name for path in tmp_path.iterdir()] == ["losnet.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--package or --preset"),
        (["--preset", "losnet", "--package", "x"], "--package or --preset"),
        (["--preset", "losnett"], "losnett"),
        (["--preset", "losnet", "--set", "depth=3"], "no option 'depth'"),
        (["--package", "nowhere"], "nowhere"),
        (["--preset", "losnet_debug", "--size", "60x96"], "multiples of 32, such as 64x96"),
        (["--preset", "losnet_debug", "--size", "big"], "HEIGHTxWIDTH"),
        (["--preset", "mask_rcnn_r50"], "MaskRCNN has no dense outputs"),
        (["--preset", "fm_hrnet_debug", "--classes", "1"], "two classes"),
    ],
)
def test_mistakes_end_with_one_line(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("export", *arguments, "--output", tmp_path / "model.onnx") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_file_must_be_named_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("export", "--preset", "losnet_debug", "--output", "exports/losnet") == 2
    assert "ends in .onnx" in capsys.readouterr().err
