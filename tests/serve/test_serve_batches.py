"""Batches without Ray: what is asked for, what is remembered, who may begin."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorAlreadyExistsError

from stratum import storage
from stratum.cluster import LOCAL
from stratum.inference.work import BatchSpec
from stratum_models.package import Manifest
from stratum_serve import batches
from stratum_serve.batch_routes import BatchRequest, _state
from stratum_serve.batches import BatchDesk, BatchState, BatchStore, works_of
from stratum_serve.config import ServeConfig
from stratum_serve.directory import Target
from stratum_serve.problems import Problem

MANIFEST = Manifest(preset="losnet_debug", classes=("ore",), num_classes=1, task="instance")


def state(batch: str, created: float = 0.0, status: Any = "finished") -> BatchState:
    return BatchState(
        id=batch,
        status=status,
        model="ore",
        uri="models:/ore/1",
        weights_sha256="",
        spec=BatchSpec(data="s3://bucket/in", storage="s3://bucket/out"),
        created=created,
    )


def asked(**values: Any) -> BatchState:
    request = BatchRequest(model="ore", output="s3://bucket/out", **values)
    config = ServeConfig.model_validate({"models": "ore", "s3_prefixes": "s3://bucket/"})
    return _state(request, Target(name="ore", uri="models:/ore/1", manifest=MANIFEST, manifest_sha256="0" * 64), config)


def test_an_image_that_is_named_twice_is_done_once() -> None:
    works = works_of(asked(images=["s3://bucket/in/1.png", "s3://bucket/in//1.png", "s3://bucket/in/2.png", "s3://bucket/in/1.png"]))
    assert [(work.index, work.uri) for work in works] == [(0, "s3://bucket/in/1.png"), (1, "s3://bucket/in/2.png")]


def test_a_batch_wants_no_cpu_where_none_may_ever_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for local, cpus in (("1", 0.0), ("0", 1.0)):
        monkeypatch.setenv(LOCAL, local)
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert asked(data="s3://bucket/in").spec.cpus == cpus


def test_a_batch_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ray", SimpleNamespace(available_resources=lambda: {"CPU": 0.5}))
    assert batches._waits(BatchSpec(data="x", storage="y")).startswith("waits for a CPU (1 wanted, 0.5 free)")
    assert batches._waits(BatchSpec(data="x", storage="y", cpus=0.0)) == ""


def test_old_batches_are_forgotten_and_none_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "KEPT", 20)
    store = BatchStore(str(tmp_path))
    for number in range(20):
        store.write(state(f"{number:032x}", created=float(number)))
    store.prune(set())
    assert len(storage.list_files(str(tmp_path))) == 20
    store.write(state("a" * 32, created=-1.0, status="running"))
    (tmp_path / f"{'b' * 32}.json").write_text("{")
    store.prune({"a" * 32})
    left = {Path(name).stem for name in storage.list_files(str(tmp_path))}
    assert left == {f"{number:032x}" for number in range(3, 20)} | {"a" * 32}


class FakeRay:
    """Actors by name; ``ending`` of them are still there for so many further looks."""

    def __init__(self, *taken: str, ending: int = 10**9) -> None:
        self.taken, self.ending = list(taken), ending
        self.util = SimpleNamespace(list_named_actors=lambda **_: [{"name": one, "namespace": batches.NAMESPACE} for one in self.taken])

    def remote(self, _: type) -> "FakeRay":
        return SimpleNamespace(options=lambda name, **_: SimpleNamespace(remote=self._made(name)))  # type: ignore[return-value]

    def _made(self, name: str) -> Callable[[str], Any]:
        def made(_: str) -> Any:
            self.ending -= 1
            if name in self.taken and self.ending >= 0:
                raise ActorAlreadyExistsError("taken")
            self.taken.append(name)
            return SimpleNamespace(run=SimpleNamespace(remote=lambda _: None))

        return made


def test_of_two_who_begin_a_batch_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, one = BatchStore(str(tmp_path)), state("a" * 32, status="running")
    store.write(one)
    desk = BatchDesk(store, str(tmp_path), most=3)
    monkeypatch.setattr(batches, "ray", FakeRay("a" * 32))
    with pytest.raises(Problem) as caught:
        desk._start(one)
    assert (caught.value.kind, caught.value.status) == ("batch-running", 409)
    store.write(state("a" * 32, status="cancelled"))
    monkeypatch.setattr(batches, "ray", FakeRay("a" * 32, ending=2))  # whose actor is about to end
    assert desk._start(one).status == "queued"
    monkeypatch.setattr(batches, "ray", FakeRay("b", "c", "d"))
    with pytest.raises(Problem) as caught:
        desk._start(one)
    assert (caught.value.kind, caught.value.retry_after) == ("overload", batches.RETRY_SECONDS)
