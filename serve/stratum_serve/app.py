"""The Serve application: ``serve run stratum_serve.app:build``, or ``import_path`` of a Serve configuration file."""

import ipaddress
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from stratum.allocator import KEEPING
from stratum.tracking import tracking_uri
from stratum_models.errors import UserError
from stratum_models.package import load_manifest
from stratum_serve.batch_routes import batch_routes
from stratum_serve.calls import call, everywhere
from stratum_serve.config import Scaling, ServeArgs, ServeConfig, load_config
from stratum_serve.http import make_app
from stratum_serve.keys import VARIABLE, KeyRing, given_keys
from stratum_serve.problems import Problem
from stratum_serve.replica import FirstStage, Models, SecondStage
from stratum_serve.service import Service
from stratum_serve.worker import Answer, Task

logger = logging.getLogger("ray.serve")
APPLICATION = "default"  # its name, as `serve run` gives it
DRAIN_SECONDS = 5.0  # beyond the longest deadline
LOOK_BACK_SECONDS = 4.0  # over which autoscaling averages
INGRESS_QUEUE = 100


class RayBackend:
    """Models behind deployment handles; see :class:`stratum_serve.service.Backend`."""

    def __init__(self, models: DeploymentHandle[Any], stage1: DeploymentHandle[Any] | None) -> None:
        self._models, self._stage1 = models, stage1

    async def run(self, model_id: str, task: Task) -> Answer:
        """See :class:`stratum_serve.service.Backend`."""
        answer: Answer = await call(self._models, "answer", model_id, task)
        return answer

    async def refine(self, model_id: str, task: Task) -> Answer:
        """See :class:`stratum_serve.service.Backend`."""
        if self._stage1 is None:
            raise Problem("unavailable", "this server has no deployments for pipelines: name them in pipelines")
        answer: Answer = await call(self._stage1, "answer", model_id, task)
        return answer

    async def load(self, model_id: str, *, pipeline: bool) -> None:
        """See :class:`stratum_serve.service.Backend`."""
        await everywhere(self._models, "load", model_id)
        if pipeline and self._stage1 is not None:
            await everywhere(self._stage1, "load", model_id)


@serve.ingress()
class Ingress:
    """The HTTP side."""

    def __init__(self, config: ServeConfig, models: DeploymentHandle[Any], stage1: DeploymentHandle[Any] | None = None) -> None:
        keys = KeyRing(config.keys_file)
        check_open(keys, _host())
        self._keys, self._service = keys, Service(config, RayBackend(models, stage1))

    async def drain(self) -> None:
        """Let no request in any more, and wait until all are answered."""
        await self._service.door.close()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._service, self._keys, batch_routes(self._service), behind_proxy=True)


def build(args: ServeArgs) -> Application:
    """The application, from the builder's arguments; see :mod:`stratum_serve.config`.

    Raises:
        UserError: the configuration cannot be used.
    """
    config = with_pipelines(load_config(args))
    KeyRing(config.keys_file)  # a broken file ends here, not in a replica
    tracking = {"MLFLOW_TRACKING_URI": config.tracking_uri or tracking_uri()} if any(not model.package for model in config.models) else {}
    env = {**KEEPING, **tracking}
    models = _deployed(Models, "models", _options(config.scaling, config, env)).bind(config)
    stage1 = None
    if config.pipelines:
        stage2 = _deployed(SecondStage, "stage2", _options(config.stage2, config, env)).bind(config)
        stage1 = _deployed(FirstStage, "stage1", _options(config.stage1, config, env)).bind(config, stage2)
    ingress = _options(config.ingress, config, tracking | _keys(config)) | {
        "max_queued_requests": INGRESS_QUEUE,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
    }
    return _deployed(Ingress, "ingress", ingress).bind(config, models, stage1)


def _keys(config: ServeConfig) -> dict[str, str]:
    """The variable of keys for replicas, which may stand on machines where it is not set; it holds hashes alone."""
    return {VARIABLE: given_keys()} if given_keys() and not config.keys_file else {}


def with_pipelines(config: ServeConfig) -> ServeConfig:
    """The configuration with the two-stage packages of this machine's files among the pipelines. Raises UserError for unknown names."""
    names = [model.name for model in config.models]
    unknown = [name for name in config.pipelines if name not in names]
    if unknown:
        raise UserError(f"serving configuration: pipelines: {unknown[0]} is none of the models {', '.join(names)}")
    found = [model.name for model in config.models if model.package and "://" not in model.package and _has_two_stages(model.package)]
    return config.model_copy(update={"pipelines": tuple(dict.fromkeys([*config.pipelines, *found]))})


def check_open(keys: KeyRing, host: str) -> None:
    """Without keys a server may listen on loopback alone, and says so. Raises UserError where it listens elsewhere."""
    if not keys.open:
        return
    if not is_loopback(host):
        raise UserError(
            f"no API keys are set and the server listens on {host or 'every address'}: set keys_file or {VARIABLE}, or host 127.0.0.1"
        )
    logger.warning("no API keys are set: everyone on this machine may use the server; set keys_file or %s", VARIABLE)


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches such an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _deployed(kind: type, name: str, options: dict[str, Any]) -> Deployment:
    made: Deployment = serve.deployment(name=name, **options)(kind)
    return made


def _has_two_stages(package: str) -> bool:
    try:
        return load_manifest(Path(package)).preset.startswith("two_stage")
    except UserError:  # it may come later; until then the model is said to be broken
        return False


def _options(scaling: Scaling, config: ServeConfig, env: dict[str, str]) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": scaling.cpus, "num_gpus": scaling.gpus, "runtime_env": {"env_vars": env}},
        "max_ongoing_requests": scaling.max_ongoing_requests,
        "max_queued_requests": config.limits.queued,
        "graceful_shutdown_timeout_s": config.limits.seconds + DRAIN_SECONDS,
        "max_surge_percent": 100,  # a new version comes up beside the old one, which goes on answering
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": LOOK_BACK_SECONDS,
        },
    }


def _host() -> str:
    """The address that Serve's HTTP proxies listen on."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    return str(client.http_config.host or "") if client is not None else ""
