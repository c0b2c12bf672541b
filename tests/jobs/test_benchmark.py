import json
import re
from pathlib import Path
from typing import Any

import pytest
from in_process import exit_code

from stratum import cost, storage
from stratum.registry import log_package, promote
from stratum.tracking import open_run
from stratum_models.catalog import CATALOG, build_model
from stratum_models.package import Manifest, save_package


def test_records_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "mine" / "package"
    manifest = Manifest(preset="losnet_debug", classes=("ore", "belt"), num_classes=2, task="instance", overrides={"head_convs": 2})
    save_package(package, build_model("losnet_debug", num_classes=2, overrides={"head_convs": 2}), manifest)
    out = tmp_path / "new" / "cost.json"
    flags = ("--size", "64x96", "--repeats", "2", "--train-batch", "1")
    code = exit_code("benchmark", "--models", "losnet_debug", "--package", package, *flags, "--json", out)
    assert code == 0
    first, second = json.loads(out.read_text())
    assert {"model", "task", "input", "params", "macs", "size_bytes", "latency_ms", "latency_ratio", "peak_memory_mb", "paper"} <= set(
        first
    )
    assert (first["model"], first["input"], first["latency_ratio"], first["weights"]) == ("losnet_debug", "64x96", 1.0, "random")
    assert 1 <= first["instances"] <= 100
    assert first["peak_memory_mb"] > 0
    assert first["train_memory_mb"] > 0
    assert (second["model"], second["weights"]) == ("mine", "package")
    assert second["params"] > first["params"]
    assert second["size_bytes"] == sum(path.stat().st_size for path in package.iterdir())
    table = capsys.readouterr().out
    assert "losnet_debug" in table
    assert "mine" in table


def test_more_models_than_are_in_memory_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cost.json"
    tasks = [[name for name in CATALOG if name.endswith("_debug") and CATALOG[name].task == task] for task in ("instance", "semantic")]
    names = [*tasks[0][:1], *tasks[1][:3], "two_stage_debug"]
    assert exit_code("benchmark", "--models", ",".join(names), "--size", "64x96", "--repeats", "1", "--json", out) == 0
    records = json.loads(out.read_text())
    assert [record["model"] for record in records] == names
    assert len(names) > 1 + cost.TOGETHER
    assert records[0]["latency_ratio"] == 1.0
    assert all(record["latency_ms"] > 0 and record["peak_memory_mb"] > 0 for record in records)
    steps = {record["model"]: record["stages_ms"] for record in records if record["stages_ms"]}
    assert {name: list(taken) for name, taken in steps.items()} == {
        "two_stage_debug": ["scale", "stage1", "pick", "crop", "stage2", "merge"]
    }
    assert all(milliseconds > 0 for milliseconds in steps["two_stage_debug"].values())
    assert "pick + crop + merge" in capsys.readouterr().out
    assert [record["instances"] is None for record in records] == [record["task"] == "semantic" for record in records]


def test_cost_only_of_all_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cost.json"
    code = exit_code("benchmark", "--models", "all", "--size", "64x64", "--cost-only", "--json", out)
    assert code == 0
    records = {record["model"]: record for record in json.loads(out.read_text())}
    assert set(records) == {name for name in CATALOG if not name.endswith("_debug")}
    assert all(record["latency_ms"] is None for record in records.values())
    assert records["losnet"]["paper"]["infer_ms"] == 25.2
    assert records["condinst_r50"]["macs"] > 8 * records["losnet"]["macs"]
    assert records["deeplab_mv2_ema"]["params"] - records["deeplab_mv2"]["params"] == 16_160
    allowed = {"deeplab_mv2": 1, "hrnet_w18": 3, "hrnet_w32": 3, "hrnet_w18_arsm": 1, "hrnet_w32_arsm": 1}  # percent
    for name, percent in allowed.items():
        assert abs(records[name]["as_in_paper"]["params_deviation"]) < percent, name
    assert abs(records["hrnet_w18_ocr"]["as_in_paper"]["macs_deviation"]) < 1
    assert records["losnet"]["as_in_paper"] is None
    printed = capsys.readouterr().out
    assert re.search(r"hrnet_w18 .*256x256, 5, stem_strides=1,1 .* 9.64 .* 9.44 .*2.1 % .* 73.11 .* 63.98 .*14.3 %", printed)
    assert re.search(r"losnet .*64x64, 1 .* 2.4\d .*- .*-", printed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "losnett"], "losnett"),
        (["--size", "huge"], "HEIGHTxWIDTH"),
        (["--package", "nowhere"], "nowhere"),
        (["--repeats", "0"], "--repeats 0"),
        (["--models", "losnet,losnet"], "twice"),
        (["--threads", "-1"], "--threads -1"),
        (["--package", "models:/no-such-model@champion"], "no-such-model"),
    ],
)
def test_bad_input_ends_with_one_line(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cost.json"
    assert exit_code("benchmark", *arguments, "--json", out) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert not out.exists()


def test_a_package_is_measured_at_the_size_that_the_table_names(tmp_path: Path) -> None:
    overrides = {"input_short": 128, "input_long": 160}
    manifest = Manifest(
        preset="losnet_debug", classes=("ore",), num_classes=1, task="instance", overrides=overrides, cost={"cost/size_mb": 1.0}
    )
    save_package(tmp_path / "mine", build_model("losnet_debug", num_classes=1, overrides=overrides), manifest)
    uri = register(tmp_path / "mine")
    out = tmp_path / "cost.json"
    assert exit_code("benchmark", "--models", "losnet_debug", "--package", uri, "--size", "64x96", "--cost-only", "--json", out) == 0
    preset, package = json.loads(out.read_text())
    assert (package["weights"], package["input"]) == ("package", "64x96")
    assert package["macs"] == preset["macs"]


def register(package: Path) -> str:
    with open_run("benchmark", "train") as run:
        log_package(run.run_id, package, "benchmarked")
    promote("benchmarked", "cost/size_mb")
    return "models:/benchmarked@champion"


def test_records_go_to_s3(s3_env: Any, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"s3://{s3_env.bucket()}/costs/losnet.json"
    assert exit_code("benchmark", "--models", "losnet_debug", "--size", "64x64", "--cost-only", "--json", uri) == 0
    assert storage.read_json(uri)[0]["model"] == "losnet_debug"
    assert storage.list_files(uri.removesuffix("/losnet.json")) == [uri]
    assert f"written: {uri}" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["folder", "file/cost.json", "s3://no-such-bucket-here/cost.json"])
def test_records_that_cannot_be_written_are_refused_before_measuring(
    place: str, s3_env: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no folder")
    assert exit_code("benchmark", "--models", "losnet_debug", "--json", place if "://" in place else tmp_path / place) == 2
    said = capsys.readouterr()
    assert place in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
