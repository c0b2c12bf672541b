"""The cluster file as Ray reads it, and the policies beside the requests that the code makes."""

import fnmatch
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import exit_code
from runs import SMALL, write_ore

from stratum import storage

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "aws"
PART = b"x" * (9 << 20)  # above what boto3 sends in one part


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"infra_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


recording = _load("recording")


def policy(role: str) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads((FOLDER / "iam" / f"{role}.json").read_text())["Statement"]
    assert all(one["Effect"] == "Allow" for one in statements)
    return statements


def allowed(role: str, need: Any) -> bool:
    """Whether a policy of allowing statements permits a request, by AWS's rules for these elements."""
    return any(_matches(statement, need) for statement in policy(role))


def _matches(statement: dict[str, Any], need: Any) -> bool:
    actions, resources = (_listed(statement[name]) for name in ("Action", "Resource"))
    if need.action not in actions or not any(fnmatch.fnmatchcase(need.resource, one) for one in resources):
        return False
    for operator, values in statement.get("Condition", {}).items():
        assert operator in ("StringLike", "StringLikeIfExists")
        patterns = values["s3:prefix"]
        if need.prefix is None:
            if operator == "StringLike":
                return False
        elif not any(fnmatch.fnmatchcase(need.prefix, one) for one in patterns):
            return False
    return True


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3

    with recording.recording() as recorder:
        for name, value in {"ENDPOINT_URL": recorder.endpoint, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", recorder.endpoint)
        monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the keys it was made with
        client = boto3.client("s3")
        client.create_bucket(Bucket="stratum")
        for key in ("images/1.png", "images/2.png", "packages/ore/model.json"):
            client.put_object(Bucket="stratum", Key=key, Body=b"{}")
        client.close()
        storage.upload_tree(write_ore(tmp_path / "ore", 8), "s3://stratum/data/ore")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        recorder.needs.clear()
        yield recorder


def folder_with(path: Path) -> Path:
    path.mkdir()
    (path / "weights.safetensors").write_bytes(PART)
    (path / "model.json").write_text("{}")
    return path


def train(tmp_path: Path) -> None:
    """A training in this process that is resumed, and pruning; then what Ray's workers do with checkpoints."""
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.storage import StorageContext, delete_fs_path

    runs = ["--storage", "s3://stratum/runs"]
    assert exit_code("train", *SMALL, *runs, "--data", "s3://stratum/data/ore", "--epochs", "2", "--name", "one", "--workers", "0") == 0
    assert exit_code("train", *runs, "--resume", "one", "--workers", "0") == 0
    assert exit_code("prune", *runs, "--days", "0", "--delete") == 0
    files = folder_with(tmp_path / "package")
    filesystem, path = storage.ray_filesystem("s3://stratum/runs/two")
    assert filesystem is not None
    context = StorageContext(storage_path=path, experiment_dir_name="ray", storage_filesystem=filesystem)
    kept = context.persist_current_checkpoint(Checkpoint.from_directory(str(files)), "checkpoint_000000")
    kept.to_directory(str(tmp_path / "resumed"))
    delete_fs_path(filesystem, kept.path)
    storage.remove_tree("s3://stratum/runs/two/ray")


def track(tmp_path: Path) -> None:
    """What MLflow's server does with artifacts that it proxies."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository("s3://stratum/mlflow/1/abc/artifacts")
    repository.log_artifacts(str(folder_with(tmp_path / "package")), "package")
    repository.list_artifacts("package")
    repository.download_artifacts("package", str(tmp_path))
    repository.delete_artifacts("package")


def answer(tmp_path: Path) -> None:
    """What the server does: images and packages in, results and batches out."""
    storage.list_files("s3://stratum/images")
    storage.read_once("s3://stratum/images/1.png")
    storage.fetch_tree("s3://stratum/packages/ore")
    results = folder_with(tmp_path / "results")
    for _ in range(2):  # a batch that is resumed takes its manifest back first
        storage.upload_tree(results, "s3://stratum/results/1", last=("model.json",))
    storage.write_json("s3://stratum/batches/b1.json", {})
    storage.read_once("s3://stratum/batches/b1.json")
    storage.list_files("s3://stratum/batches")
    storage.remove_tree("s3://stratum/batches/b1.json")


WORK = {"trainer": train, "tracker": track, "server": answer}
PREFIXES = {"trainer": {"data", "runs"}, "tracker": {"mlflow"}, "server": {"images", "packages", "results", "batches"}}


@pytest.mark.parametrize("role", WORK)
def test_a_role_may_do_what_its_code_does_and_no_action_more(role: str, mlflow_sqlite: str, tmp_path: Path, recorder: Any) -> None:
    WORK[role](tmp_path)
    assert [need for need in sorted(recorder.needs, key=str) if not allowed(role, need)] == []
    used = {need.action for need in recorder.needs}
    granted = {action for statement in policy(role) for action in _listed(statement["Action"])}
    # Parts are given up only when an upload fails half-way, which these do not.
    assert granted - used <= {"s3:AbortMultipartUpload"}
    assert not any("*" in action for action in granted)


@pytest.mark.parametrize("role", WORK)
def test_a_role_stays_within_its_own_prefixes(role: str) -> None:
    place = f"arn:aws:s3:::{recording.BUCKET}"
    for prefix in set().union(*PREFIXES.values()) | {"other"}:
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            got = allowed(role, recording.Need(action=action, resource=f"{place}/{prefix}/x"))
            assert prefix in PREFIXES[role] or not got, (role, action, prefix)
        listed = allowed(role, recording.Need(action="s3:ListBucket", resource=place, prefix=f"{prefix}/"))
        assert listed == (prefix in PREFIXES[role])
    for prefix in {"data", "images", "packages"}:
        assert not allowed(role, recording.Need(action="s3:PutObject", resource=f"{place}/{prefix}/x"))
    assert not allowed(role, recording.Need(action="s3:GetObject", resource="arn:aws:s3:::other/data/x"))
    # pyarrow asks for the bucket itself (HeadBucket), which no prefix can narrow.
    assert allowed(role, recording.Need(action="s3:ListBucket", resource=place)) == (role == "trainer")


def test_rays_own_loader_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((FOLDER / "cluster.yaml").read_text()))
    config.setdefault("cluster_synced_files", [])
    validate_config(config)
    types = config["available_node_types"]
    assert types["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (types["gpu-spot"]["min_workers"], config["idle_timeout_minutes"]) == (0, 10)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


def test_machines_run_what_the_image_has_with_its_secrets_and_all_threads() -> None:
    from ray.autoscaler._private.command_runner import _with_interactive
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load((FOLDER / "cluster.yaml").read_text()))
    assert [*config["head_setup_commands"], *config["worker_setup_commands"]] == []  # Ray's defaults install a Ray of their own
    options = dict(one.removeprefix("--env ").split("=") for one in config["docker"]["run_options"] if one.startswith("--env "))
    assert options["RAY_JOB_STOP_WAIT_TIME_S"] == "90"
    assert options["MLFLOW_TRACKING_PASSWORD_FILE"] in config["file_mounts"]
    assert "OMP_NUM_THREADS=1" in str(_with_interactive("x"))
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert command.startswith("unset OMP_NUM_THREADS; /app/infra/image/entrypoint ray start ")
        (store,) = re.findall(r"--object-store-memory=(\d+)", command)
        (room,) = re.findall(r"--shm-size=(\d+)g", " ".join(config["docker"]["run_options"]))
        assert int(store) <= int(room) * 2**30 // 2  # torch's data loaders use /dev/shm too


def test_machines_get_the_roles_that_the_docs_make() -> None:
    types = yaml.safe_load((FOLDER / "cluster.yaml").read_text())["available_node_types"]
    profiles = {name: one["node_config"]["IamInstanceProfile"]["Name"] for name, one in types.items()}
    assert profiles == {"head": "stratum-head", "gpu-spot": "stratum-trainer", "cpu": "stratum-trainer"}
    docs = (ROOT / "docs" / "operations.md").read_text()
    # Drivers of submitted jobs run on the head, and write to S3 there.
    assert "| `stratum-head` | `launcher.json`, `trainer.json` |" in docs
    assert "| `stratum-trainer` | `trainer.json` |" in docs
    (give,) = [one for one in policy("launcher") if one["Action"] == "iam:PassRole"]
    assert give["Resource"].endswith("role/stratum-trainer")


def test_a_mistake_in_the_cluster_file_is_seen() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((FOLDER / "cluster.yaml").read_text()))
    with pytest.raises(ValidationError):
        validate_config({**config, "cluster_synced_files": [], "idle_timeout": 10})


def test_the_launcher_ends_only_its_own_machines() -> None:
    (end,) = [one for one in policy("launcher") if "ec2:TerminateInstances" in one["Action"]]
    name = yaml.safe_load((FOLDER / "cluster.yaml").read_text())["cluster_name"]
    assert end["Condition"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": name}}
