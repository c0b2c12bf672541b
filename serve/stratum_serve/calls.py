"""Calls between deployments: to a replica that has the model, again to another where one dies, never queued without bound; or to all."""

import asyncio
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from stratum_serve.problems import Problem

ATTEMPTS = 6
DEATHS = 2  # of replicas that worked at a request, after which it is taken for the cause
PAUSE_SECONDS = 0.2
RETRY_SECONDS = 1


async def call(handle: DeploymentHandle[Any], method: str, model_id: str, *arguments: Any) -> Any:
    """What a method of a deployment answers; ``model_id`` is its first argument, and says which replicas come first.

    Requests change nothing, so one whose replica died is asked again of another; not of a third one, since it may be what they died of.

    Raises:
        Problem: the deployment says so, has too much to do, or dies again and again.
    """
    asked = handle.options(method_name=method, multiplexed_model_id=model_id)
    dead: set[str] = set()
    for attempt in range(ATTEMPTS):
        response = asked.remote(model_id, *arguments)
        try:
            answer = await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]  # the client has gone, or its deadline: the replica need not go on
            raise
        except BackPressureError as error:
            raise Problem("overload", "the models have too much to do: try again later", RETRY_SECONDS) from error
        except DeploymentUnavailableError as error:
            raise Problem("unavailable", "the models are being replaced: try again later", RETRY_SECONDS) from error
        except (ActorDiedError, ActorUnavailableError, WorkerCrashedError) as error:
            if not getattr(error, "preempted", False):
                dead.add(str(getattr(error, "actor_id", "")))  # one that was asked when it was dead already is counted once
            if len(dead) >= DEATHS:
                raise Problem("internal", f"{DEATHS} replicas ended while they worked at this request: send a smaller image") from error
            await asyncio.sleep(PAUSE_SECONDS * attempt)
            continue
        if isinstance(answer, Problem):
            raise answer
        return answer
    raise Problem("unavailable", "the replicas of the model end again and again: their log tells why", RETRY_SECONDS)


async def everywhere(handle: DeploymentHandle[Any], method: str, model_id: str) -> None:
    """Call a method of all replicas of a deployment that there are, or of the first one that comes; one that dies meanwhile is left out.

    Raises:
        Problem: one of them says so.
    """
    try:
        answers = await handle.broadcast(method, model_id).results_async(return_exceptions=True)
    except DeploymentUnavailableError:  # it has no replica, now
        answers = []
    for answer in answers:
        if isinstance(answer, Problem):
            raise answer
    if all(isinstance(answer, Exception) for answer in answers):
        await call(handle, method, model_id)
