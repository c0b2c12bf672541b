"""The registry against a real sqlite store: packages go in and come out the same, the best within limits is promoted."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stratum import storage
from stratum.registry import fetch_package, log_package, promote
from stratum.registry.promotion import Candidate, choose, parse_limits, usual_metric
from stratum.registry.pyfunc import PackageModel
from stratum.tracking import client_for, open_run, tracking_uri
from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.package import MANIFEST_FILE, WEIGHTS_FILE, Manifest, load_manifest, load_package, save_package

PackageMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def store() -> str:
    """One store for the module: every test registers a model of its own name."""
    return tracking_uri()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make(tmp_path: Path) -> PackageMaker:
    def package(name: str = "package", seed: int = 0, **values: object) -> Path:
        torch.manual_seed(seed)
        given: dict[str, object] = {"preset": "losnet_debug", "classes": ("ore",), "num_classes": 1, "task": "instance"}
        save_package(tmp_path / name, build_model("losnet_debug", num_classes=1), Manifest(**{**given, **values}))  # type: ignore[arg-type]
        return tmp_path / name

    return package


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in (WEIGHTS_FILE, MANIFEST_FILE))


def test_a_package_comes_back_by_every_name(store: str, make: PackageMaker) -> None:
    folder = make(metrics={"val/mask_ap50": 0.5}, cost={"latency_ms": 30.0})
    with open_run("registry", "train") as run:
        assert log_package(run.run_id, folder, "every-name") == "models:/every-name/1"
        assert log_package(run.run_id, folder, "every-name") == "models:/every-name/1"  # a resumed run registers once
        assert log_package(run.run_id, folder) == f"runs:/{run.run_id}/package"
    tags = client_for(store).get_model_version("every-name", "1").tags
    assert (tags["val/mask_ap50"], tags["cost/latency_ms"], tags["preset"]) == ("0.5", "30.0", "losnet_debug")
    promote("every-name", "val/mask_ap50")
    for uri in ("models:/every-name@champion", "models:/every-name/1", f"runs:/{run.run_id}/package", str(folder), str(folder.parent)):
        assert same(fetch_package(uri), folder), uri


def test_a_package_that_waited_in_the_outbox_is_registered(store: str, make: PackageMaker) -> None:
    folder = make()
    with open_run("registry", "train") as run:
        run.log_package(folder, "outbox")
        shutil.rmtree(folder)  # a copy was queued
        assert run.flush(60)
    assert load_package(fetch_package("models:/outbox/1")).manifest.preset == "losnet_debug"


def test_a_damaged_cache_is_fetched_again(store: str, make: PackageMaker) -> None:
    folder = make()
    with open_run("registry", "train") as run:
        log_package(run.run_id, folder, "cache")
    cached = fetch_package("models:/cache/1")
    (cached / WEIGHTS_FILE).write_bytes(b"cut short")
    assert same(fetch_package("models:/cache/1"), folder)


def test_the_same_weights_with_another_threshold_are_another_package(store: str, make: PackageMaker) -> None:
    for threshold in (0.3, 0.6):
        folder = make(score_threshold=threshold)
        with open_run("registry", "train") as run:
            uri = log_package(run.run_id, folder, "thresholds")
        for name in (uri, f"runs:/{run.run_id}/package"):
            assert load_manifest(fetch_package(name)).score_threshold == threshold
    client_for(store).delete_model_version_tag("thresholds", "1", "manifest_sha256")  # as of a version of an earlier release
    assert load_manifest(fetch_package("models:/thresholds/1")).score_threshold == 0.3


def test_a_run_that_logs_its_package_again_has_the_figures_of_the_last(store: str, make: PackageMaker) -> None:
    with open_run("registry", "train") as run:
        for latency in (30.0, 20.0):
            folder = make(cost={"latency_ms": latency})
            assert log_package(run.run_id, folder, "again") == "models:/again/1"
            assert same(fetch_package("models:/again/1"), folder)
    assert client_for(store).get_model_version("again", "1").tags["cost/latency_ms"] == "20.0"


def test_a_package_on_s3(s3_env: object, make: PackageMaker) -> None:
    folder = make()
    uri = f"s3://{s3_env.bucket()}/runs/first/package"  # type: ignore[attr-defined]
    storage.upload_tree(folder, uri)
    assert same(fetch_package(uri), folder)


def test_a_damaged_package_is_not_registered(store: str, make: PackageMaker) -> None:
    folder = make()
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-1])
    with open_run("registry", "train") as run, pytest.raises(UserError, match="damaged"):
        log_package(run.run_id, folder, "damaged")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/nowhere/1", "known models"),
        ("models:/names@chief", "aliases none"),
        ("models:/names/7", "versions 1"),
        ("models:/names", "names no version"),
        ("runs:/0123456789abcdef/package", "no such run"),
        ("runs:/{run}/elsewhere", "elsewhere"),
        ("{folder}", "no model package"),
        ("{folder}/missing", "no such"),
        ("https://example.org/package", "not supported"),
    ],
)
def test_what_is_not_there_is_named(store: str, make: PackageMaker, tmp_path: Path, uri: str, says: str) -> None:
    client = client_for(store)
    if not client.search_model_versions("name = 'names'"):
        with open_run("registry", "train") as run:
            log_package(run.run_id, make(), "names")
    run_id = client.get_model_version("names", "1").run_id
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=says) as caught:
        fetch_package(uri.format(run=run_id, folder=empty))
    assert "\n" not in str(caught.value)


def test_mlflow_itself_can_load_and_call_the_model(store: str, make: PackageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64

    import mlflow
    import pandas

    folder = make()
    with open_run("registry", "train") as run:
        uri = log_package(run.run_id, folder, "pyfunc")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    model = mlflow.pyfunc.load_model(uri)
    answers = [
        model.predict([pixels])[0],
        model.predict([str(path)])[0],
        model.predict(pandas.DataFrame({"image": [base64.b64encode(path.read_bytes()).decode()]}))[0],
        model.predict([pixels.tolist()])[0],
    ]
    expected = load_package(folder).predict([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])[0]
    for answer in answers:
        assert answer["size"] == [64, 80]
        assert answer["scores"] == pytest.approx(expected.scores.tolist())
        assert len(answer["masks"]) == len(answer["boxes"]) == len(answer["scores"])
    with pytest.raises(UserError, match="shape"):
        model.predict([np.zeros((4, 4, 7), dtype=np.uint8)])


@pytest.mark.parametrize("scale", [1 / 255, -1.0, 300.0, np.nan])
def test_pixels_that_are_no_whole_numbers_are_refused(make: PackageMaker, scale: float) -> None:
    model = PackageModel(load_package(make()))
    pixels = np.random.default_rng(0).integers(1, 255, (64, 80, 3)).astype(np.float64)
    assert model.predict([pixels])[0]["size"] == [64, 80]
    with pytest.raises(UserError, match=r"holds float64 \(.* to .*\): give whole numbers, 0 to 255"):
        model.predict([pixels * scale])


SERVER = """
import sys
ours = [path for path in sys.path if path.rstrip("/").rpartition("/")[2] in ("platform", "models", "serve")]
sys.path[:] = [path for path in sys.path if path not in ours]
for name in ("ray", "rich", "tyro", "optuna", "skimage", "torchmetrics"):
    sys.modules[name] = None  # not among the requirements: importing it fails
import mlflow.pyfunc, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict([numpy.zeros((64, 80, 3), "uint8")])[0]["size"])
import stratum, stratum_models
print(stratum.__file__, stratum_models.__file__)
"""


def test_a_server_needs_no_more_than_what_was_logged(store: str, make: PackageMaker, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    with open_run("registry", "train") as run:
        log_package(run.run_id, make())
    logged = Path(download_artifacts(run_id=run.run_id, artifact_path="package", dst_path=str(tmp_path / "server"), tracking_uri=store))
    command = [sys.executable, "-I", "-c", SERVER, str(logged)]
    done = subprocess.run(command, cwd=tmp_path / "server", capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[64, 80]", f"{logged}/code/stratum/__init__.py {logged}/code/stratum_models/__init__.py"]
    required = (logged / "requirements.txt").read_text().splitlines()
    assert {"mlflow", "boto3", "pycocotools", "torch"} <= {line.partition("==")[0] for line in required}


def test_the_best_within_the_limits_is_promoted(store: str, make: PackageMaker) -> None:
    figures = [(0.5, 30.0), (0.7, 90.0), (0.6, 35.0), (None, 10.0)]
    for seed, (quality, latency) in enumerate(figures):
        metrics = {} if quality is None else {"val/mask_ap50": quality}
        folder = make(seed=seed, metrics=metrics, cost={"latency_ms": latency})
        with open_run("registry", "train") as run:
            log_package(run.run_id, folder, "limits")
    done = promote("limits", "val/mask_ap50", ["cost/latency_ms=40"])
    assert (done.version, done.value, done.previous) == ("3", 0.6, None)
    reasons = dict(done.passed_over)
    assert reasons.keys() == {"1", "2", "4"}
    assert "version 3 0.6" in reasons["1"]
    assert "90, above 40" in reasons["2"]
    assert "has no val/mask_ap50" in reasons["4"]
    assert client_for(store).get_model_version_by_alias("limits", "champion").version == 3
    assert promote("limits").previous == "3"
    assert promote("limits", "cost/latency_ms", alias="fastest").version == "4"
    with pytest.raises(UserError, match="no version of limits can be promoted"):
        promote("limits", "val/mask_ap50", ["cost/latency_ms=1"])
    assert client_for(store).get_model_version_by_alias("limits", "champion").version == 2  # as it was
    with pytest.raises(UserError, match="no version of a model named 'nowhere'"):
        promote("nowhere", "val/mask_ap50")


def test_the_newer_of_equals_is_taken_and_not_a_number_is_nothing() -> None:
    candidates = [Candidate(version=str(n), tags={"m": value}) for n, value in ((9, "0.5"), (10, "0.5"), (11, "nan"), (12, "x"))]
    best, refused = choose(candidates, "m", {})
    assert best is not None
    assert best.version == "10"
    assert [version for version, _ in refused] == ["9", "11", "12"]


@pytest.mark.parametrize("metric", ["val/mask_ap50", "val/miou"])
def test_what_is_best_follows_from_what_was_measured(metric: str) -> None:
    assert usual_metric([Candidate(version="1", tags={}), Candidate(version="2", tags={metric: "0.5", "val/pa": "0.9"})]) == metric


@pytest.mark.parametrize("limit", ["cost/latency_ms", "cost/latency_ms=", "cost/latency_ms=fast", "40"])
def test_a_limit_that_is_none(limit: str) -> None:
    with pytest.raises(UserError, match="cost/latency_ms=40"):
        parse_limits([limit])


def test_versions_measured_on_other_data_are_pointed_out(store: str, make: PackageMaker) -> None:
    for seed in (0, 1):
        folder = make(seed=seed, metrics={"val/mask_ap50": 0.5}, data_fingerprint=f"data {seed}")
        with open_run("registry", "train") as run:
            log_package(run.run_id, folder, "other-data")
    assert "2 different data sets" in promote("other-data", "val/mask_ap50").warnings[0]


def test_versions_timed_on_other_machines_are_pointed_out(store: str, make: PackageMaker) -> None:
    for device in ("one", "other"):
        cost = {"cost/latency_ms": 30.0, "cost/params": 2e6}
        folder = make(metrics={"val/mask_ap50": 0.5}, cost=cost, cost_setting={"device": device, "threads": "2"})
        with open_run("registry", "train") as run:
            log_package(run.run_id, folder, "other-machine")
    (warning,) = promote("other-machine", "val/mask_ap50", ["cost/latency_ms=40", "cost/params=3e6"]).warnings
    where = "device one, threads 2; device other, threads 2"
    assert warning == f"the versions were measured on {where}: their cost/latency_ms is not comparable"
    assert promote("other-machine", "val/mask_ap50").warnings == ()
