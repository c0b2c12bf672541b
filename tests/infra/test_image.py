"""The image's parts that need no container engine: what is copied, what is installed, how secrets and health are read."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from running import until

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "infra" / "image"
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def sent_to_the_builder() -> set[str]:
    """The tracked files that .dockerignore lets through."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in tracked.stdout.splitlines() if _kept(name, rules)}


def _kept(name: str, rules: list[str]) -> bool:
    kept = True
    for rule in rules:
        pattern, keep = rule.removeprefix("!"), rule.startswith("!")
        parts = name.split("/")
        folders = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        if any(fnmatch(folder, pattern) or (pattern.startswith("**/") and fnmatch("/" + folder, "*" + pattern[2:])) for folder in folders):
            kept = keep
    return kept


def test_everything_that_is_copied_is_sent() -> None:
    sent = sent_to_the_builder()
    for line in instructions("COPY"):
        if "--from=" in line:
            continue
        *sources, _ = [part for part in line.split() if not part.startswith("--")]
        for source in sources:
            assert any(name == source or name.startswith(f"{source}/") for name in sent), f"{source} does not reach the builder"


def test_the_context_is_small_and_holds_no_tests_or_secrets() -> None:
    sent = sent_to_the_builder()
    assert sum((ROOT / name).stat().st_size for name in sent) < 5 * 2**20
    assert not [name for name in sent if name.startswith(("tests/", "docs/", ".git")) or "secret" in name]


def test_libraries_are_those_of_the_project_and_pinned() -> None:
    done = subprocess.run(
        [sys.executable, IMAGE / "requirements.py", ROOT / "pyproject.toml", "tracker"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:-1] == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["tracker"]]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split(r"[\[<>=~!]", line)[0].lower() for line in done.stdout.split()} <= pinned
    assert all("--constraint constraints.txt" in part for part in re.findall(r"pip install[^;]*", "\n".join(instructions("RUN"))))


def test_wheels_for_cpus_come_from_their_index_alone_and_before_the_rest() -> None:
    (install,) = [line for line in instructions("RUN") if "TORCH_INDEX_URL" in line]
    wheels, rest = re.findall(r"pip install [^;]*", install)
    assert wheels.split()[2:] == [
        "--constraint",
        "constraints.txt",
        "--no-deps",
        "--index-url",
        '"$TORCH_INDEX_URL"',
        "torch",
        "torchvision",
    ]
    assert "--index-url" not in rest  # PyPI's; what is installed already fits its constraints and stays


def test_the_image_runs_as_nobody_special_with_this_python() -> None:
    assert instructions("USER") == ["1000:1000"]
    (base,) = {line for line in instructions("ARG") if line.startswith("PYTHON_IMAGE")}
    version = re.search(r"python:(\d+\.\d+)", base)
    assert version is not None
    assert tuple(map(int, version[1].split("."))) >= (3, 11)
    assert "PYTHONPATH=platform:models:serve" in DOCKERFILE


def test_login_shells_find_the_images_python() -> None:
    # As Ray's cluster launcher runs its commands; Debian's /etc/profile has set PATH anew before it reads the image's own part.
    assert "infra/image/profile.sh /etc/profile.d/stratum.sh" in instructions("COPY")
    script = f". {IMAGE / 'profile.sh'}; echo $PATH"
    done = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/local/bin:/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    assert done.stdout == "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin\n"
    environment = " ".join(instructions("ENV"))
    assert f"PATH={done.stdout.split(':')[0]}:" in environment
    (home,) = re.findall(r"HOME=(\S+)", environment)
    mounted = yaml.safe_load((ROOT / "infra/aws/cluster.yaml").read_text())["file_mounts"]
    assert f"{home}/.ray/auth_token" in mounted


def test_what_ray_and_kuberay_call_is_installed() -> None:
    (install,) = [line for line in instructions("RUN") if "apt-get install" in line]
    assert {"rsync", "openssh-client", "wget"} <= set(install.split())  # the cluster launcher's first two, KubeRay's probes


def run_entrypoint(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([IMAGE / "entrypoint", *command], env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True)


SECRETS = re.findall(r"\b[A-Z_]+\b(?=[A-Z_ ]*; do)", (IMAGE / "entrypoint").read_text())


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_come_out_of_files(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "a secret"
    secret.write_text("p$(id)'a\" ss\n")
    done = run_entrypoint("sh", "-c", f'printf %s "${name}|${{{name}_FILE-none}}"', **{f"{name}_FILE": str(secret)})
    assert done.stdout == "p$(id)'a\" ss|none"


def test_variables_that_are_to_name_files_stay() -> None:
    names = dict.fromkeys(("AWS_WEB_IDENTITY_TOKEN_FILE", "SSL_CERT_FILE", "STRATUM_SERVE_KEYS_FILE"), "/etc/hostname")
    done = run_entrypoint("env", **names)
    assert {line for line in done.stdout.splitlines() if "hostname" in line} == {f"{name}=/etc/hostname" for name in names}


def test_the_secrets_are_those_that_containers_of_ours_get_as_files() -> None:
    services = yaml.safe_load((ROOT / "infra/compose/compose.yaml").read_text())["services"].values()
    ours = [service.get("environment", {}) for service in services if "STRATUM_IMAGE" in service["image"]]
    files = {name.removesuffix("_FILE") for environment in ours for name in environment if name.endswith("_FILE")}
    assert files - {"AWS_SHARED_CREDENTIALS"} == set(SECRETS)  # that one boto3 reads by itself


def test_a_missing_secret_ends_the_container_with_a_line() -> None:
    done = run_entrypoint("true", MLFLOW_DB_PASSWORD_FILE="/nowhere")
    assert done.returncode == 2
    assert done.stderr == "entrypoint: error: MLFLOW_DB_PASSWORD_FILE=/nowhere cannot be read: mount the secret or correct its name\n"


class Dashboard:
    """What Serve's REST API says and was told, at an address of this process's own."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] | None = {}  # None: it is about to start, and answers 503
        self.deployed: list[dict[str, object]] = []
        self.seen: set[str | None] = set()


@contextmanager
def dashboard(made: Dashboard) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, body: str = "") -> None:
            made.seen.add(self.headers.get("Authorization"))
            self.send_response(code if self.path == "/api/serve/applications/" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self) -> None:
            there = made.statuses
            body = json.dumps({"applications": {name: {"status": status} for name, status in (there or {}).items()}})
            self.answer(503 if there is None else 200, body)

        def do_PUT(self) -> None:
            config = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if made.statuses is not None:
                made.deployed.append(config)
                made.statuses = {application["name"]: "RUNNING" for application in config["applications"]}
            self.answer(503 if made.statuses is None else 200)

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as port:
        yield f"http://127.0.0.1:{port}"


def test_what_is_served_comes_back_after_the_head(tmp_path: Path) -> None:
    config = ROOT / "infra/compose/serve.yaml"
    made = Dashboard()
    with dashboard(made) as address:
        process = subprocess.Popen(
            [sys.executable, IMAGE / "keep_serving.py", address, config, "0.05"],
            env={"PATH": os.environ["PATH"], "RAY_AUTH_TOKEN": "t0k"},
            stdout=subprocess.DEVNULL,
        )
        try:
            until(lambda: made.deployed == [yaml.safe_load(config.read_text())], 60)
            for statuses in ({}, {"other": "RUNNING"}, {"stratum": "DEPLOY_FAILED"}):
                before = len(made.deployed)
                made.statuses = None
                time.sleep(0.3)  # a head that does not answer yet is waited for
                assert len(made.deployed) == before
                made.statuses = dict(statuses)
                until(lambda: len(made.deployed) == before + 1, 60)  # noqa: B023
            made.statuses = {"stratum": "DEPLOYING"}
            time.sleep(0.5)
            assert len(made.deployed) == 4  # what is there is left alone
            assert process.poll() is None
        finally:
            process.kill()
            process.wait(30)
    assert made.seen == {"Bearer t0k"}


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server on loopback."""
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def agent(status: int, seen: list[str | None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(status if self.path == "/api/local_raylet_healthz" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as port:
        yield port


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_what_the_agent_says_and_the_token_is_sent(status: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0k\n")
    seen: list[str | None] = []
    env = {"PATH": os.environ["PATH"], "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with agent(status, seen) as port:
        done = subprocess.run([sys.executable, IMAGE / "healthcheck.py", str(port)], env=env, timeout=60)
    assert (done.returncode, seen) == (code, ["Bearer t0k"])
