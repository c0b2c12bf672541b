"""What is served and within which limits: the arguments of :func:`stratum_serve.app.build`.

They come from the ``args`` of a Serve configuration file, from ``serve run stratum_serve.app:build key=value``, or, for fields that are
not given there, from ``STRATUM_SERVE_<FIELD>`` in the environment (JSON where a field has parts).
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from stratum_models.errors import UserError
from stratum_serve.names import NAME

ENVIRONMENT = "STRATUM_SERVE_"
DEMO_PACKAGE = "outputs/demo-package"  # where `make demo` leaves the winner
DEFAULT_ALIAS = "champion"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Share(_Part):
    """Another version of a model that gets a share of its requests."""

    to: str = Field(pattern=rf"^{NAME}$", description="An alias or a version of the same registered model.")
    share: float = Field(gt=0, le=1)


class ModelConfig(_Part):
    """A model under a name: from the registry, or a package by path or URI."""

    name: str = Field(pattern=rf"^{NAME}$")
    package: str = Field(default="", description="A folder or s3://... of a package; empty: the registry's model of this name.")
    registered: str = Field(default="", description="Its name in the registry, where that is another.")
    alias: str = Field(default=DEFAULT_ALIAS, pattern=rf"^{NAME}$", description="The alias that is live under the bare name.")
    canary: Share | None = None
    shadow: Share | None = None

    @property
    def which(self) -> tuple[str, ...]:
        """What is loaded before anyone asks: what is live, as the empty text, and the versions that get a share of its requests."""
        return ("", *(share.to for share in (self.canary, self.shadow) if share is not None))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.package and (self.registered or self.canary or self.shadow):
            raise ValueError(f"model {self.name}: a package has no versions: leave out registered, canary and shadow, or package")
        return self


class Limits(_Part):
    """What is refused before it costs anything."""

    body_bytes: int = Field(default=32 * 2**20, gt=0)
    pixels: int = Field(default=40_000_000, gt=0)
    instance_pixels: int = Field(default=8_000_000, gt=0, description="In which instances are looked for; larger images need max_size.")
    side: int = Field(default=20_000, gt=0, description="Pixels of the longer side.")
    frames: int = Field(default=1, ge=1)
    in_flight: int = Field(default=64, gt=0, description="Requests that one ingress replica works at or holds.")
    queued: int = Field(default=64, gt=0, description="Requests that wait for a model replica, in all.")
    seconds: float = Field(default=60.0, gt=0, description="The deadline of a request that names none, and the longest that one may name.")
    batches: int = Field(default=2, gt=0, description="Batches that run at once.")


class Scaling(_Part):
    """How many replicas a deployment has and what each of them takes."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float = Field(default=4.0, gt=0)
    max_ongoing_requests: int = Field(default=16, gt=0)
    upscale_delay_s: float = Field(default=2.0, ge=0)
    downscale_delay_s: float = Field(default=60.0, ge=0)
    cpus: float = Field(default=1.0, ge=0, description="Threads of a replica, too.")
    gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}: lower one or raise the other")
        return self


class Batching(_Part):
    """What goes through a network at once."""

    images: int = Field(default=4, ge=1)
    pixels: int = Field(default=2_000_000, gt=0)
    patches: int = Field(default=64, ge=1, description="Of all requests together, in the second stage of a pipeline.")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _models(value: Any) -> Any:
    """``losnet,ore=outputs/package``: names of the registry, and packages under a name."""
    return [_model(part) for part in _split(value)] if isinstance(value, (str, list, tuple)) else value


def _model(part: Any) -> Any:
    if not isinstance(part, str):
        return part
    name, _, package = part.partition("=")
    return {"name": name, "package": package}


class ServeConfig(_Part):
    """Everything that can be set."""

    models: Annotated[tuple[ModelConfig, ...], BeforeValidator(_models)] = ()
    tracking_uri: str = Field(default="", description="The MLflow server; empty: MLFLOW_TRACKING_URI, or the user's own store.")
    refresh_seconds: float = Field(default=5.0, gt=0, description="How often aliases and packages are looked at again.")
    keys_file: str = Field(default="", description="A secret file of hashed API keys; see stratum_serve.keys.")
    s3_prefixes: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(default=(), description="Where images and results may lie.")
    backend: Literal["torch", "compile", "onnxruntime"] = "torch"
    limits: Limits = Limits()
    scaling: Scaling = Scaling()
    ingress: Scaling = Scaling(cpus=0.0, max_ongoing_requests=100, max_replicas=1, target_ongoing_requests=32.0)
    stage1: Scaling = Scaling(cpus=0.5)
    stage2: Scaling = Scaling(cpus=0.5, max_ongoing_requests=32)
    pipelines: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=(), description="Models with two stages that answer under /v1/refine; packages of files are found by themselves."
    )
    models_per_replica: int = Field(
        default=0,
        ge=0,
        description="At least what is configured, canaries and shadows too; 0: that, and one for what comes next.",
    )
    batching: Batching = Batching()
    batches: str = Field(default="", description="A folder or s3://... that remembers batches; empty: the user's own on this machine.")
    batch_workers: int = Field(default=1, ge=1, description="Actors of Ray Data that a batch may have.")
    batch_cpus: float | None = Field(
        default=None,
        ge=0,
        description="CPUs that each of them asks for. By default 1 on a cluster, which may grow; none on a Ray of `make serve`, whose "
        "CPUs the models may all have: they then take what requests leave.",
    )
    page: bool = True
    port: int = Field(default=8000, gt=0, lt=65536, description="Of `make serve`; elsewhere http_options of a Serve configuration say it.")

    @field_validator("models")
    @classmethod
    def _once(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        names = [model.name for model in models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"models {', '.join(sorted(twice))} are configured twice: give each a name of its own")
        return models

    @model_validator(mode="after")
    def _room(self) -> Self:
        needed = sum(len(model.which) for model in self.models)
        if 0 < self.models_per_replica < needed:
            raise ValueError(
                f"models_per_replica {self.models_per_replica}: {needed} are configured, canaries and shadows too, and would push each "
                "other out: set it higher, or leave it out"
            )
        return self

    @property
    def models_held(self) -> int:
        """How many models a replica holds."""
        return self.models_per_replica or 1 + sum(len(model.which) for model in self.models)


class ServeArgs(BaseModel):
    """The builder's arguments: a file, and fields of :class:`ServeConfig` that go before it."""

    model_config = ConfigDict(extra="allow")

    config: str = Field(default="", description="A YAML file with the fields of ServeConfig.")


def load_config(args: ServeArgs, root: Path | None = None) -> ServeConfig:
    """The configuration: what ``args`` say, then the file, then the environment, then the defaults.

    Relative package folders are taken from ``root``, the folder of the server. With no model at all, the demo's package is served.

    Raises:
        UserError: a field is unknown or cannot be used, or there is nothing to serve.
    """
    values = _environment() | _file(args.config or os.environ.get(f"{ENVIRONMENT}CONFIG", "")) | (args.model_extra or {})
    try:
        config = ServeConfig.model_validate(values)
    except ValueError as error:
        raise UserError(f"serving configuration: {_one_line(error)}") from error
    models = config.models or (_demo(root or Path.cwd()),)
    return config.model_copy(update={"models": tuple(_absolute(model, root or Path.cwd()) for model in models)})


def _demo(root: Path) -> ModelConfig:
    if not (root / DEMO_PACKAGE / "model.json").is_file():
        raise UserError(f"nothing to serve: run `make demo` first, or name models, such as models=losnet or models=ore={DEMO_PACKAGE}")
    return ModelConfig(name="losnet", package=DEMO_PACKAGE)


def _absolute(model: ModelConfig, root: Path) -> ModelConfig:
    if not model.package or "://" in model.package:
        return model
    return model.model_copy(update={"package": str((root / model.package).absolute())})


def _environment() -> dict[str, Any]:
    found = {}
    for field in ServeConfig.model_fields:
        text = os.environ.get(ENVIRONMENT + field.upper())
        if text:
            found[field] = yaml.safe_load(text) if text.lstrip().startswith(("{", "[")) else text
    return found


def _file(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({_one_line(error)}): correct the file or its name") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, not fields and values: write models: [...]")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
