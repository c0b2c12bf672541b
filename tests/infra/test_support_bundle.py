"""The archive for a report: what is needed is in, no secret is."""

import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "support-bundle"


def load() -> Any:
    loader = importlib.machinery.SourceFileLoader("support_bundle", str(SCRIPT))
    spec = importlib.util.spec_from_loader("support_bundle", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


bundle = load()
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIplanted",
    "MLFLOW_TRACKING_PASSWORD": "horse-planted",
    "RAY_AUTH_TOKEN": "0123456789planted",
    "STRATUM_SERVE_KEYS": "[{name: a, sha256: planted}]",
}


def test_no_secret_of_the_environment_or_the_logs_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "ray" / "session_latest" / "logs"
    folder.mkdir(parents=True)
    (folder / "raylet.out").write_text(
        f"before\nAuthorization: Bearer {PLANTED['RAY_AUTH_TOKEN']}\npostgresql://mlflow:planted-in-url@db:5432/x\n"
        "{'aws_secret_access_key': 'planted-in-log', 'bucket': 'ore'}\nAKIAPLANTEDPLANTEDAA\nGET /k?X-Amz-Signature=planted123&x=1\nafter\n"
    )
    env = {"PATH": "/usr/bin:/bin", "RAY_TMPDIR": str(tmp_path / "ray"), "RAY_AUTH_MODE": "token", "AWS_REGION": "eu-1", **PLANTED}
    target = tmp_path / "x.tar.gz"
    done = subprocess.run([sys.executable, SCRIPT, target], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    files = texts(target)
    everything = "\n".join(files.values())
    assert "planted" not in everything.lower()
    assert {"machine.txt", "settings.txt", "packages.txt", "ray-status.txt", "ray-logs/raylet.out"} <= files.keys()
    assert "AWS_REGION=eu-1\n" in files["settings.txt"]
    assert "RAY_AUTH_TOKEN=" in files["settings.txt"]
    assert files["ray-logs/raylet.out"].startswith("before\n")
    assert "'bucket': 'ore'" in files["ray-logs/raylet.out"]
    assert "torch==" in files["packages.txt"]
    assert os.listdir(tmp_path / "ray") == ["session_latest"]


def test_what_containers_say_is_in_it(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (("docker", 0), ("kubectl", 1)):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*"\necho "MLFLOW_TRACKING_PASSWORD=planted"\nexit {code}\n')
        (programs / name).chmod(0o755)
    target = tmp_path / "x.tar.gz"
    env = {"PATH": f"{programs}:/usr/bin:/bin", "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, SCRIPT, target], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    files = texts(target)
    assert "planted" not in "\n".join(files.values())
    assert re.search(r"compose --file \S+/infra/compose/compose\.yaml logs .*--tail", files["compose-logs.txt"])
    assert "--namespace stratum" in files["kubernetes.txt"]
    assert "kubernetes-logs.txt" not in files  # it did not answer the first time


def test_a_program_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "TIMEOUT", 0.3)
    assert bundle.output(["sleep", "60"]) == ("sleep 60: no answer within 0.3 s\n", False)


def test_what_a_program_says_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "OUTPUT_BYTES", 10)
    assert bundle.output(["seq", "1000"]) == ("\n999\n1000\n\nexit code 0\n", True)


def texts(archive: Path) -> dict[str, str]:
    """The files of an archive."""
    with tarfile.open(archive) as opened:
        return {one.name.removeprefix("support/"): opened.extractfile(one).read().decode() for one in opened}  # type: ignore[union-attr]


def test_an_archive_that_is_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "x.tar.gz"
    target.write_text("mine")
    done = subprocess.run([sys.executable, SCRIPT, target], capture_output=True, text=True, timeout=60)
    assert (done.returncode, target.read_text()) == (2, "mine")


@given(
    st.text("abcdefXYZ0123456789-_", min_size=16, max_size=40),
    st.sampled_from(
        [
            "Bearer {}", "token={}", '"password": "{}"', "s3://u:{}@h/x", "x-api-key: {}", "X-API-Key={}", "--redis-password {}",
            "--redis-password={}", "['--redis-password', '{}']", "{{'AWS_SECRET_ACCESS_KEY': '{}'}}", "MLFLOW_TRACKING_PASSWORD: {}",
            r'"{{\"AWS_SECRET_ACCESS_KEY\": \"{}\", \"x\": 1}}"', r'"{{\\\"RAY_AUTH_TOKEN\\\": \\\"{}\\\"}}"',
            '"password": "two words {} and more"', "'secret_key': 'two words {}'", r'"password": "a \" quote {}"',
            r'{{\"password\": \"two words {}\"}}',
        ]
    ),
)  # fmt: skip
def test_secrets_of_any_letters_go(secret: str, form: str) -> None:
    assert secret not in bundle.without_secrets(f"a {form.format(secret)} b")


@pytest.mark.parametrize("text", ["epoch 3/40 loss 0.3 12 images/s", "s3://bucket/key/x.png", "http://host:5000/api", "tokens per second"])
def test_plain_lines_stay(text: str) -> None:
    assert bundle.without_secrets(text) == text
