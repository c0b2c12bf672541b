"""Jobs on an S3 that answers 503 to a fifth of the requests, resets a twentieth of the connections, and stalls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_s3 import FaultyS3, faulty_s3
from in_process import exit_code
from mlflow import MlflowClient
from runs import SMALL, losses, only_run, training, write_ore

from stratum import storage
from stratum.tracking import open_run
from stratum.tracking.delivery import deliver_leftovers
from stratum.training.run import run_local
from stratum.training.spec import from_dict
from stratum_models.catalog import build_model
from stratum_models.package import Manifest, load_package, save_package

IMAGES = 10
SEED = 138  # with which the fourth request stalls, when nobody but this process has asked yet
READ_TIMEOUT = 2.0  # seconds; less than a request stalls for


@pytest.fixture
def bad(s3_env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The S3 server behind a proxy that makes it bad, for this process and those that it starts. This process gives up what stalls."""
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    for module in ("client", "arrow"):
        monkeypatch.setattr(f"stratum.storage.{module}.READ_TIMEOUT", READ_TIMEOUT)
    with faulty_s3(s3_env.endpoint, seed=SEED) as proxy, monkeypatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
            patch.setenv(name, proxy.endpoint)
        yield proxy


@pytest.fixture
def ore(tmp_path: Path) -> Path:
    return write_ore(tmp_path / "ore", IMAGES)


def check_faults(proxy: FaultyS3, least: int, *, given_up: int = 1) -> None:
    """The server was as bad as it was to be, and so many requests at least stalled for longer than their client waited."""
    done = proxy.done
    print(dict(done))
    assert done["requests"] >= least, done
    assert 0.1 < done["refused"] / done["requests"] < 0.35, done
    assert sum(count for kind, count in done.items() if kind.startswith("reset")) >= 1, done
    assert done["stalled"] >= 1, done
    assert done["given up"] >= given_up, done


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_training_loses_and_doubles_nothing(
    workers: int, s3_env: Any, bad: FaultyS3, ore: Path, mlflow_sqlite: str, tmp_path: Path
) -> None:
    bucket = f"s3://{s3_env.bucket()}"
    storage.upload_tree(ore, f"{bucket}/ore")
    flags = [*SMALL, "--epochs", "2", "--name", "one", "--workers", str(workers)]
    with training(*flags, "--data", f"{bucket}/ore", "--storage", f"{bucket}/runs") as running:  # with a Ray that knows the keys of S3
        code, errors = running.end(300)
    assert code == 0, running.said + errors
    check_faults(bad, least=60)
    # The run is the one that a good server would have given: its losses, each epoch once, its files.
    assert only_run(mlflow_sqlite).info.status == "FINISHED"
    values = storage.read_json(f"{bucket}/runs/one/run.json")["spec"]
    plain = run_local(from_dict({**values, "data": {**values["data"], "uri": str(ore)}, "storage": str(tmp_path / "plain")}))
    assert losses(mlflow_sqlite) == list(enumerate([row["train/loss"] for row in plain.history], 1))
    package = load_package(storage.fetch_tree(f"{bucket}/runs/one/package"))
    assert package.manifest.metrics["val/mask_ap50"] == plain.metrics["val/mask_ap50"]
    if workers:
        return
    checkpoints = {uri.split("/checkpoints/")[1].split("/")[0] for uri in storage.list_files(f"{bucket}/runs/one/checkpoints")}
    assert checkpoints == {"checkpoints.json", *storage.read_json(f"{bucket}/runs/one/checkpoints/checkpoints.json").values()}


def test_artifacts_arrive_once(s3_env: Any, bad: FaultyS3, mlflow_sqlite: str, tmp_path: Path) -> None:
    client = MlflowClient(mlflow_sqlite)
    client.create_experiment("faults", artifact_location=f"s3://{s3_env.bucket()}/mlflow")
    with open_run("faults", "one") as run:
        for number in range(20):
            run.log_metrics({"loss": 1 / (number + 1)}, number)
            (tmp_path / f"{number}.txt").write_text(str(number))
            run.log_artifact(tmp_path / f"{number}.txt", "texts")
    deliver_leftovers(mlflow_sqlite, 120)  # as the next start does
    check_faults(bad, least=20, given_up=0)  # MLflow's own client waits for a minute
    assert only_run(mlflow_sqlite).info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.run_id, "loss")] == list(range(20))
    texts = {artifact.path: artifact.file_size for artifact in client.list_artifacts(run.run_id, "texts")}
    assert texts == {f"texts/{number}.txt": len(str(number)) for number in range(20)}


@pytest.mark.timeout(600)
def test_checkpoints_of_ray_lose_nothing(s3_env: Any, bad: FaultyS3, tmp_path: Path) -> None:
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.storage import StorageContext

    bucket = f"s3://{s3_env.bucket()}"
    filesystem, path = storage.ray_filesystem(f"{bucket}/runs/one")
    context = StorageContext(storage_path=path, experiment_dir_name="ray", storage_filesystem=filesystem)
    files = {f"part-{number}": np.random.default_rng(number).bytes(200_000) for number in range(4)}
    (tmp_path / "made").mkdir()
    for name, data in files.items():
        (tmp_path / "made" / name).write_bytes(data)
    for number in range(2):
        kept = context.persist_current_checkpoint(Checkpoint.from_directory(str(tmp_path / "made")), f"checkpoint_{number}")
        back = Path(kept.to_directory(str(tmp_path / f"back-{number}")))
        assert {path.name: path.read_bytes() for path in back.iterdir() if not path.name.startswith(".")} == files
    check_faults(bad, least=25)


@pytest.mark.timeout(600)
def test_prediction_does_each_image_once(ray_local: None, s3_env: Any, bad: FaultyS3, ore: Path, tmp_path: Path) -> None:
    bucket = f"s3://{s3_env.bucket()}"
    manifest = Manifest(preset="losnet_debug", classes=("ore",), num_classes=1, task="instance", score_threshold=0.02)
    save_package(tmp_path / "package", build_model("losnet_debug", num_classes=1), manifest)
    storage.upload_tree(tmp_path / "package", f"{bucket}/package")
    storage.upload_tree(ore / "images", f"{bucket}/images")
    places = ("--package", f"{bucket}/package", "--data", f"{bucket}/images", "--storage", f"{bucket}/found")
    assert exit_code("predict", *places, "--resume", "--batch-size", "2") == 0
    check_faults(bad, least=60)
    names = [f"{index:02d}" for index in range(IMAGES)]
    assert storage.list_files(f"{bucket}/found/masks") == [f"{bucket}/found/masks/{name}.png" for name in names]
    images = storage.read_json(f"{bucket}/found/predictions.json")["images"]
    assert sorted(Path(image["file_name"]).stem for image in images) == names
    assert len([uri for uri in storage.list_files(f"{bucket}/found/records") if not uri.endswith("run.json")]) == IMAGES
    assert storage.read_json(f"{bucket}/found/sizes.json")["broken"] == 0
