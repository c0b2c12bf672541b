"""What workers are told, and what Ray writes down of it."""

import json
import os
import subprocess
import sys

import pytest

from stratum.cluster import JOB_CONFIG, LOCAL, RAYLET, forwarded_environment

SECRETS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c", "MLFLOW_TRACKING_PASSWORD": "d"}
PLAIN = {
    "AWS_ENDPOINT_URL": "http://s3",
    "AWS_SHARED_CREDENTIALS_FILE": "/run/x",
    "MLFLOW_TRACKING_URI": "http://m",
    "STRATUM_LOG_FORMAT": "json",
}
# A task sees the secret, and no file that Ray wrote does.
SCRIPT = """
import os, pathlib, ray
from stratum.cluster import ray_cluster
with ray_cluster(1, env={"MALLOC_ARENA_MAX": "1"}):
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "MALLOC_ARENA_MAX")
    seen = ray.get(ray.remote(lambda: tuple(os.environ.get(name) for name in names)).remote())
    assert seen == (os.environ["AWS_SECRET_ACCESS_KEY"], "http://s3", "1"), seen
    files = [path for path in pathlib.Path(ray._private.worker._global_node.get_session_dir_path()).rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files]
    assert any(b"RAY_ADDRESS" in text for text in texts)
    assert not any(seen[0].encode() in text for text in texts)
"""


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "STRATUM_"))]:
        monkeypatch.delenv(name)
    for name, value in {**SECRETS, **PLAIN, "RAY_ADDRESS": "head:6379", "HOME_SECRET": "no"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_driver_outside_the_cluster_hands_its_keys_over(env: pytest.MonkeyPatch) -> None:
    assert forwarded_environment() == {**SECRETS, **PLAIN, "RAY_ADDRESS": "head:6379"}


@pytest.mark.parametrize(("name", "value"), [(JOB_CONFIG, "{}"), (RAYLET, "17"), (LOCAL, "1")])
def test_on_the_cluster_itself_secrets_are_not_shown_to_ray(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)
    assert forwarded_environment() == {**PLAIN, "RAY_ADDRESS": "head:6379", **({name: value} if name == LOCAL else {})}


def test_what_a_job_was_submitted_with_is_not_set_twice(env: pytest.MonkeyPatch) -> None:
    env.setenv(JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": {**SECRETS, "MLFLOW_TRACKING_URI": "http://m"}}}))
    assert forwarded_environment() == {name: value for name, value in PLAIN.items() if name != "MLFLOW_TRACKING_URI"} | {
        "RAY_ADDRESS": "head:6379"
    }


def test_more_is_handed_over_where_the_job_does_not_have_it(env: pytest.MonkeyPatch) -> None:
    env.setenv(JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": {**SECRETS, **PLAIN, "MALLOC_ARENA_MAX": "4"}}}))
    assert forwarded_environment({"MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": "9"}) == {"RAY_ADDRESS": "head:6379", "MALLOC_TOP_PAD_": "9"}


def test_workers_of_a_local_ray_have_the_secrets_and_its_logs_do_not() -> None:
    env = {**os.environ, "AWS_SECRET_ACCESS_KEY": "planted-7f3a9c", "AWS_ENDPOINT_URL": "http://s3"}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
