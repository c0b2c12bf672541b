"""What is handed to the workers of a Ray."""

import json

import pytest

from stratum.cluster import JOB_CONFIG, LOCAL, forwarded_environment


def test_what_workers_need_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCAL, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": {"AWS_REGION": "there"}}}))
    forwarded = forwarded_environment()
    assert forwarded["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert not {"HOME", "AWS_REGION"} & forwarded.keys()


def test_a_ray_of_our_own_is_handed_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCAL, "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert forwarded_environment() == {}
