"""The application on a real Ray Serve: replicas, promotion under load, killed processes, clients that leave, batches on S3, the page."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import schemathesis
import torch
from running import Load, Running, free_port, running, until
from serve_tools import decoded, make_package, picture, png
from truth import check_operations

from stratum import storage
from stratum.cluster import LOCAL
from stratum.registry import log_package
from stratum.tracking import client_for, open_run
from stratum_models.package import load_package
from stratum_serve.client import Client
from stratum_serve.keys import new_key

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running server, its registry, its bucket and a key."""

    server: Running
    store: str
    bucket: str
    key: str
    versions: tuple[str, str]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def promote(self, version: str) -> None:
        client_for(self.store).set_registered_model_alias("ore", "champion", version)

    def client(self) -> Client:
        return Client(self.server.url, self.key)


@pytest.fixture(scope="module")
def site(packages: dict[str, Path], s3: Any, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    store = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    bucket = s3.bucket()
    key, entry = new_key("test", ("predict", "batches"))
    args = {
        "models": [
            {"name": "ore"},
            {"name": "slag", "package": str(packages["slag"])},
            {"name": "cells", "package": str(packages["cells"])},
        ],
        "refresh_seconds": 0.5,
        "s3_prefixes": [f"s3://{bucket}/"],
        "scaling": {"min_replicas": 2, "max_replicas": 2, "cpus": 0.9},  # so that no CPU is left for batches
        "stage1": {"cpus": 0.1, "max_replicas": 1},
        "stage2": {"cpus": 0.1, "max_replicas": 1},
        "batches": str(folder / "batches"),
    }
    env = {**s3.env, "MLFLOW_TRACKING_URI": store, "STRATUM_SERVE_KEYS": json.dumps([entry.model_dump(mode="json")]), LOCAL: "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.env, "MLFLOW_TRACKING_URI": store}.items():
            patch.setenv(name, value)
        versions = (register(folder, 1), register(folder, 2))
        client_for(store).set_registered_model_alias("ore", "champion", versions[0])
        with running(free_port(), args, env) as server:
            yield Site(server=server, store=store, bucket=bucket, key=key, versions=versions)


def register(folder: Path, seed: int) -> str:
    package = make_package(folder / f"ore-{seed}", "losnet_debug", seed=seed, score_threshold=0.02)
    with open_run("serving", f"train-{seed}") as run:
        return log_package(run.run_id, package, "ore").rpartition("/")[2]


def load_on(site: Site, image: bytes, path: str = "/v1/models/ore/segment?format=png") -> Load:
    return Load(ask=lambda client: client.post(path, content=image, headers=site.headers), url=site.server.url)


def test_all_models_and_both_stages_answer(site: Site, packages: dict[str, Path], image: bytes) -> None:
    assert httpx.get(f"{site.server.url}/v1/models").status_code == 401
    with site.client() as client:
        until(lambda: all(one["ready"] for one in client.models()))
        assert client.segment("ore", image).json()["model"]["version"] == site.versions[0]
        (whole,) = load_package(packages["slag"]).predict([torch.from_numpy(picture().copy()).permute(2, 0, 1).float() / 255])
        mask = decoded(client.segment("slag", image, format="png").content)
        assert (mask != whole.probabilities.argmax(0).numpy()).mean() < 0.01  # type: ignore[union-attr]
        refined = client.refine("cells", image, patches=2).json()
        assert len(refined["refined"]["patches"]) == 2
        plain = decoded(client.segment("cells", image, format="png").content)
        both = decoded(client.refine("cells", image, format="png").content)
        assert (plain != both).mean() < 0.005  # the package's own defaults, in one process or in two


def test_a_new_champion_goes_live_without_a_failed_request(site: Site, image: bytes) -> None:
    first, second = site.versions
    with load_on(site, image) as load:
        load.more()
        site.promote(second)
        until(lambda: load.answers[-1][2] == second)
        load.more()
        site.promote(first)
        until(lambda: load.answers[-1][2] == first)
        load.more()
    assert set(load.statuses()) == {200}, load.statuses()
    assert {version for _, _, version in load.answers} == {first, second}
    until(lambda: len([line for line in metrics(site, "stratum_loaded_models") if line.endswith(" 4.0")]) >= 2)  # in both replicas


def test_a_killed_model_replica_is_not_seen(site: Site, image: bytes) -> None:
    assert len(site.server.replicas("models")) == 2
    with load_on(site, image) as load:
        load.more()
        site.server.kill(site.server.replicas("models")[0])
        load.more(40)
    assert set(load.statuses()) == {200}, load.statuses()
    until(lambda: len(site.server.replicas("models")) == 2)


def test_a_killed_ingress_is_hidden_by_the_client(site: Site, image: bytes) -> None:
    (ingress,) = site.server.replicas("ingress")
    with site.client() as client:
        before = client.segment("ore", image).json()["instances"]
        site.server.kill(ingress)
        for _ in range(5):
            assert client.segment("ore", image).json()["instances"] == before


def test_a_batch_that_was_cut_short_does_each_image_once(site: Site, s3_env: Any) -> None:
    count = int(os.environ.get("STRATUM_BATCH_IMAGES", "40"))
    for index in range(count):
        storage.write_bytes(f"s3://{site.bucket}/in/{index:03d}.png", png(picture(64, 64, index)))
    storage.write_bytes(f"s3://{site.bucket}/in/broken.png", b"no image")
    with site.client() as client:
        batch = client.start_batch(model="ore", data=f"s3://{site.bucket}/in/", output=f"s3://{site.bucket}/out/")
        assert (batch["status"], batch["total"]) == ("queued", 0)
        until(lambda: client.batch(batch["id"])["done"] >= 4)
        (runner,) = site.server.actors("BatchRunner")
        site.server.kill(runner)
        until(lambda: client.batch(batch["id"])["status"] == "interrupted")
        records = f"{batch['output']}/records"
        before = etags(s3_env, records)
        assert 4 <= len(before) - 1 < count
        assert resumed_at_once(site, batch["id"]) == [202, 409, 409]
        until(lambda: client.batch(batch["id"])["status"] not in ("queued", "running"))
        done = client.batch(batch["id"])
        assert (done["status"], done["total"], done["done"], done["broken"]) == ("finished", count + 1, count, 1), done
    after = etags(s3_env, records)
    assert {name: after[name] for name in before} == before  # what was done was not done again
    manifest = storage.read_json(done["manifest"])
    assert sorted(one["image"] for one in manifest["images"]) == storage.list_files(f"s3://{site.bucket}/in")
    assert [one["image"] for one in manifest["images"] if "error" in one] == [f"s3://{site.bucket}/in/broken.png"]
    assert all(storage.exists(one["mask"]) for one in manifest["images"][:5])
    assert len(storage.list_files(f"{batch['output']}/masks")) == count


def resumed_at_once(site: Site, batch: str) -> list[int]:
    """The statuses that three who resume a batch at the same time get."""
    with ThreadPoolExecutor(3) as pool:
        url = f"{site.server.url}/v1/batches/{batch}/resume"
        return sorted(pool.map(lambda _: httpx.post(url, headers=site.headers, timeout=60).status_code, range(3)))


def test_batches_are_cancelled_and_refused(site: Site, s3_env: Any) -> None:
    images = [f"s3://{site.bucket}/list/{index}.png" for index in range(30)]
    for index, uri in enumerate(images):
        storage.write_bytes(uri, png(picture(64, 64, index)))
    with site.client() as client:
        batch = client.start_batch(model="slag", images=images, output=f"s3://{site.bucket}/out/")
        assert client.cancel_batch(batch["id"])["status"] == "cancelled"
        assert client.batch(batch["id"])["status"] == "cancelled"
    with httpx.Client(base_url=site.server.url, headers=site.headers) as http:
        for body, status in (
            ({"model": "ore", "data": "s3://elsewhere/in", "output": f"s3://{site.bucket}/out"}, 403),
            ({"model": "none", "data": f"s3://{site.bucket}/in", "output": f"s3://{site.bucket}/out"}, 404),
            ({"model": "ore", "output": f"s3://{site.bucket}/out"}, 422),
            ({"model": "slag", "data": f"s3://{site.bucket}/in", "output": f"s3://{site.bucket}/out", "score": 0.5}, 422),
        ):
            assert http.post("/v1/batches", json=body).status_code == status
        assert http.get(f"/v1/batches/{'0' * 32}").status_code == 404
        assert http.post(f"/v1/batches/{'0' * 32}/resume").status_code == 404


def test_schemathesis_finds_nothing_in_batches(site: Site) -> None:
    schema = schemathesis.openapi.from_url(f"{site.server.url}/openapi.json")
    with requests.Session() as session:
        session.headers.update(site.headers)
        assert check_operations(schema, session, "/v1/batches", examples=10) == 4


def test_prometheus_is_told(site: Site, image: bytes) -> None:
    with site.client() as client:
        client.segment("ore", image)
    wanted = ("stratum_requests", "stratum_step_seconds_bucket", "stratum_batch_images", "stratum_pixels", "stratum_loaded_models")
    until(lambda: all(name in httpx.get(f"{site.server.metrics}/metrics").text for name in wanted), pause=1.0)
    assert any('model="ore"' in line and 'status="200"' in line for line in metrics(site, "stratum_requests"))


def metrics(site: Site, name: str) -> list[str]:
    """The lines of a metric."""
    return [line for line in httpx.get(f"{site.server.metrics}/metrics").text.splitlines() if name in line and not line.startswith("#")]


def test_a_deadline_is_told_by_the_server_and_not_by_rays_proxy(site: Site, image: bytes) -> None:
    replicas = site.server.replicas("models")
    headers = {**site.headers, "X-Request-Timeout-Seconds": "5"}
    for one in replicas:
        one.suspend()
    try:
        answer = httpx.post(f"{site.server.url}/v1/models/ore/segment", content=image, headers=headers, timeout=60)
    finally:
        for one in replicas:
            one.resume()
    assert (answer.status_code, answer.json()["type"]) == (504, "urn:stratum:problem:deadline")
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]


def test_requests_whose_clients_leave_are_not_computed(site: Site) -> None:
    replicas = site.server.replicas("models")
    heavy = png(np.zeros((1000, 1500, 3), np.uint8))
    path = "/v1/models/slag/segment?format=png"

    def spent() -> float:
        return sum(sum(one.cpu_times()[:2]) for one in replicas)

    def settled() -> float:
        while True:
            before = spent()
            time.sleep(0.5)
            if spent() - before < 0.05:
                return spent()

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=site.server.url, headers=site.headers, timeout=60) as http:
            asked = [asyncio.create_task(http.post(path, content=heavy)) for _ in range(8)]
            begin = spent()
            while spent() - begin < one / 4:
                await asyncio.sleep(0.01)
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)

    with httpx.Client(base_url=site.server.url, headers=site.headers, timeout=60) as http:
        for _ in range(2):  # the first of its size takes longer
            start = settled()
            assert http.post(path, content=heavy).status_code == 200
            one = settled() - start
    start = settled()
    asyncio.run(leave())
    assert settled() - start < 5 * one  # of eight, those that waited were not computed


def etags(s3: Any, prefix: str) -> dict[str, str]:
    """When each object under a prefix was written."""
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    with s3.client() as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        return {one["Key"]: str(one["LastModified"]) + one["ETag"] for page in pages for one in page.get("Contents", [])}


@pytest.mark.skipif(not (shutil.which("chromium") or os.environ.get("CI")), reason="Chromium is not installed")
def test_the_page_in_a_browser(site: Site, tmp_path: Path, image: bytes) -> None:
    from page import check_page

    (tmp_path / "a.png").write_bytes(image)
    check_page(site.server.url, site.key, tmp_path / "a.png", tmp_path, slag="slag", pipeline="cells")
    for name in ("light", "dark", "phone"):
        assert np.ptp(decoded((tmp_path / f"page-{name}.png").read_bytes())) > 100
