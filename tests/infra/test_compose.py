"""The compose file and what it mounts: nothing named that is not there, nothing open that should not be."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_only_the_proxy_has_a_port() -> None:
    assert {name for name, service in SERVICES.items() if service.get("ports") or service.get("network_mode")} == {"proxy"}
    assert SERVICES["proxy"]["ports"] == ["${STRATUM_PORT:-443}:443"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_declared(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (FOLDER / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]
    for other, rule in service.get("depends_on", {}).items():
        healthy = rule["condition"] == "service_healthy"
        assert other in SERVICES
        assert not healthy or "healthcheck" in SERVICES[other] or SERVICES[other]["image"].startswith("${STRATUM_IMAGE")
    for path in re.findall(r"/run/secrets/(\w+)", str(service)):
        assert path in service["secrets"], f"{name} reads the secret {path} but does not mount it"


@pytest.mark.parametrize("name", SERVICES)
def test_hosts_are_services_and_images_are_pinned(name: str) -> None:
    service = SERVICES[name]
    for host in re.findall(r"https?://([a-z0-9]+)[:/]", str({**service, "healthcheck": None})):
        assert host in SERVICES, host
    image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"])
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", image), f"{image} names no exact version"


def test_every_secret_is_a_file_that_is_made_and_never_committed(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    first = subprocess.run([sys.executable, ROOT / "scripts" / "secrets", folder], capture_output=True, text=True, check=True)
    assert {f"./secrets/{path.name}" for path in folder.iterdir()} == {one["file"] for one in COMPOSE["secrets"].values()}
    made = {path.name: path.read_text() for path in folder.iterdir()}
    again = subprocess.run([sys.executable, ROOT / "scripts" / "secrets", folder], capture_output=True, text=True, check=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    assert again.stdout == ""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    key = first.stdout.split()[-1]
    assert json.loads(made["serve_keys"])[0]["sha256"] == sha256(key.encode()).hexdigest()
    assert key not in "".join(made.values())
    (identity,) = json.loads(made["s3_identities"])["identities"]
    assert identity["credentials"][0]["secretKey"] in made["aws_credentials"]
    assert len({made[name] for name in made}) == len(made)
    ignored = subprocess.run(["git", "check-ignore", "-q", "infra/compose/secrets/ray_token"], cwd=ROOT)
    assert ignored.returncode == 0


def test_half_of_a_pair_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "aws_credentials").write_text("old")
    done = subprocess.run([sys.executable, ROOT / "scripts" / "secrets", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "belong together" in done.stderr
    assert (tmp_path / "aws_credentials").read_text() == "old"


def test_boto3_reads_the_credentials_that_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    subprocess.run([sys.executable, ROOT / "scripts" / "secrets", tmp_path], capture_output=True, check=True)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws_credentials"))
    found = boto3.session.Session().get_credentials()
    assert found is not None
    (identity,) = json.loads((tmp_path / "s3_identities").read_text())["identities"]
    assert (found.access_key, found.secret_key) == tuple(identity["credentials"][0].values())


def test_ray_asks_for_a_token_and_its_dashboard_stays_inside() -> None:
    for name in ("head", "worker", "serve"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    caddy = (FOLDER / "Caddyfile").read_text()
    assert "8265" not in caddy
    assert set(re.findall(r"reverse_proxy (\w+):", caddy)) == {"head", "mlflow", "grafana"}


def test_the_proxy_and_prometheus_ask_the_ports_that_are_listened_on() -> None:
    caddy = dict(re.findall(r"reverse_proxy (\w+):(\d+)", (FOLDER / "Caddyfile").read_text()))
    serve = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    assert caddy["head"] == str(serve["http_options"]["port"])
    assert f":{caddy['mlflow']}/health" in str(SERVICES["mlflow"]["healthcheck"])
    (ray, _) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    (found,) = ray["dns_sd_configs"]
    assert set(found["names"]) <= SERVICES.keys()
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in SERVICES[name]["command"]


def test_what_is_served_is_deployed_for_as_long_as_the_head_is_there() -> None:
    serve, head = SERVICES["serve"], SERVICES["head"]
    script, address, file = serve["command"].split()[1:]
    assert (ROOT / script.removeprefix("/app/")).is_file()
    assert address == "http://head:" + re.findall(r"--dashboard-port=(\d+)", head["command"])[0]
    assert f"./serve.yaml:{file}:ro" in serve["volumes"]
    assert {name for name, service in SERVICES.items() if service["restart"] != "unless-stopped"} == set()  # after a reboot, too


@pytest.mark.parametrize("name", ["head", "worker"])
def test_rays_object_store_fits_into_its_memory(name: str) -> None:
    (room,) = re.findall(r"STRATUM_SHM:-(\d+)gb", SERVICES[name]["shm_size"])
    (store,) = re.findall(r"--object-store-memory=(\d+)", SERVICES[name]["command"])
    assert int(store) <= int(room) * 2**30 // 2  # torch's data loaders use /dev/shm too


def test_what_is_served_is_a_serve_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load((FOLDER / "serve.yaml").read_text()))
    (application,) = schema.applications
    assert application.import_path == "stratum_serve.app:build"
    assert application.args["keys_file"] in {f"/run/secrets/{name}" for name in SERVICES["head"]["secrets"]}


@pytest.mark.parametrize("address", ["mlflow.ore.example.org", "mlflow.ore.example.org:8443"])
def test_mlflow_takes_what_browsers_send_through_the_proxy_and_from_nowhere_else(address: str) -> None:
    from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

    domain = re.compile(r"\$\{STRATUM_DOMAIN:-\w+\}")
    environment = {name: domain.sub("ore.example.org", value) for name, value in SERVICES["mlflow"]["environment"].items()}
    hosts, origins = (environment[name].split(",") for name in ("MLFLOW_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"))
    assert is_allowed_host_header(hosts, address)
    assert is_allowed_host_header(hosts, "mlflow:5000")
    assert not is_allowed_host_header(hosts, "evil.example.org")
    assert not should_block_cors_request(f"https://{address}", "POST", origins)
    assert should_block_cors_request("https://evil.example.org", "POST", origins)


def test_without_docker_one_line_says_what_is_missing(tmp_path: Path) -> None:
    for program in ("bash", "dirname"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    done = subprocess.run(
        [ROOT / "scripts" / "up"], env={"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "up: error: docker compose is missing: install Docker with its compose plugin\n"


@pytest.mark.parametrize(("settings", "built"), [({}, ["stratum:0.1.0"]), ({"STRATUM_IMAGE": "registry/mine:1"}, [])])
def test_up_brings_the_image_up_to_date(settings: dict[str, str], built: list[str], tmp_path: Path) -> None:
    for folder in ("scripts", "infra"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("secrets", "__pycache__") if folder == "infra" else None
        )
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\necho "$STRATUM_CONFIGURATION $*" >>{tmp_path}/calls\n')  # every image is there
    docker.chmod(0o755)
    configurations = []
    for change in ("", "\n# changed\n"):
        with (tmp_path / "infra" / "compose" / "serve.yaml").open("a") as file:
            file.write(change)
        (tmp_path / "calls").unlink(missing_ok=True)
        env = {"PATH": f"{docker.parent}:{Path(sys.executable).parent}:/usr/bin:/bin", **settings}
        subprocess.run([tmp_path / "scripts" / "up"], env=env, capture_output=True, check=True, timeout=60)
        calls = [line.split(" ") for line in (tmp_path / "calls").read_text().splitlines()]
        assert [call[call.index("--tag") + 1] for call in calls if call[1] == "build"] == built
        assert calls[-1][-2:] == ["up", "--detach"]
        configurations.append(calls[-1][0])
    assert len(set(configurations)) == 2  # who reads it is made anew


def test_the_bucket_is_made_once(s3_env: Any) -> None:
    name = f"b-{os.getpid()}-made"
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "infra" / "image" / "make_bucket.py", name], check=True, timeout=120)
    with s3_env.client() as client:
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]].count(name) == 1
