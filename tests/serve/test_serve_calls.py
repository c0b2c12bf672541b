"""Calls of replicas that die: another one is asked, but no request ends one after the other."""

import asyncio
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from stratum_serve import calls
from stratum_serve.problems import Problem


class Handle:
    """A deployment that gives these answers, one after the other."""

    def __init__(self, *answers: object, replicas: Sequence[object] = ()) -> None:
        self.answers, self.replicas = list(answers), replicas

    def broadcast(self, *_: object) -> "Handle":
        return self

    async def results_async(self, *, return_exceptions: bool) -> Sequence[object]:
        assert return_exceptions
        if not self.replicas:
            raise DeploymentUnavailableError(DeploymentID(name="models"))
        return self.replicas

    def options(self, **_: object) -> "Handle":
        return self

    def remote(self, *_: object) -> "Handle":
        return self

    def __await__(self) -> Generator[Any, None, object]:
        yield from asyncio.sleep(0).__await__()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def death(actor: str, *, preempted: bool = False) -> ActorDiedError:
    error = ActorDiedError()
    error.actor_id, error._preempted = actor, preempted
    return error


def away(actor: str) -> ActorUnavailableError:
    error = ActorUnavailableError("away", None)
    error.actor_id = actor
    return error


def ask(handle: Handle) -> object:
    return asyncio.run(calls.call(handle, "answer", "model"))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAUSE_SECONDS", 0)


def test_another_replica_is_asked() -> None:
    assert ask(Handle(death("a"), "answer")) == "answer"
    assert ask(Handle(death("a"), death("a"), away("a"), "answer")) == "answer"
    assert ask(Handle(death("a", preempted=True), death("b", preempted=True), death("c"), "answer")) == "answer"


def test_a_request_ends_two_replicas_at_most() -> None:
    handle = Handle(death("a"), death("a"), death("b"), "never asked")
    with pytest.raises(Problem, match="2 replicas ended") as caught:
        ask(handle)
    assert (caught.value.kind, caught.value.retry_after) == ("internal", None)  # nor does a client ask again
    assert handle.answers == ["never asked"]
    with pytest.raises(Problem) as caught:
        ask(Handle(*[death("a")] * calls.ATTEMPTS))
    assert caught.value.kind == "unavailable"


@pytest.mark.parametrize(
    ("replicas", "asked_again"), [((None, None), False), ((None, death("a")), False), ((death("a"), death("b")), True), ((), True)]
)
def test_all_replicas_are_asked_or_the_first_that_comes(replicas: Sequence[object], asked_again: bool) -> None:
    handle = Handle("loaded", replicas=replicas)
    asyncio.run(calls.everywhere(handle, "load", "model"))  # type: ignore[arg-type]
    assert handle.answers == ([] if asked_again else ["loaded"])


def test_what_one_replica_cannot_load_is_broken() -> None:
    with pytest.raises(Problem, match="damaged"):
        asyncio.run(calls.everywhere(Handle(replicas=(None, Problem("model-broken", "damaged"))), "load", "model"))  # type: ignore[arg-type]
