"""The JSON of the answers, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemDocument(_Value):
    """Problem details, RFC 9457."""

    type: str = Field(description="urn:stratum:problem:..., which never changes.")
    title: str
    status: int
    detail: str
    request_id: str


class Answerer(_Value):
    """The model that answered."""

    name: str
    version: str = Field(description="Its version in the registry; empty for a package by path.")
    weights_sha256: str


class RunLengths(_Value):
    """COCO's compressed run lengths."""

    size: list[int]
    counts: str


class Instance(_Value):
    """One instance."""

    id: int = Field(description="Its value in the id mask of format=png.")
    label: str
    score: float
    box: list[float] = Field(description="x0, y0, x1, y1 in pixels.")
    area: int = Field(description="Pixels.")
    segmentation: RunLengths | list[list[float]] = Field(description="Run lengths, or rings of x0, y0, x1, y1, ...")


class ClassShare(_Value):
    """What a class covers."""

    label: str
    pixels: int
    fraction: float
    instances: int | None = None


class Mask(_Value):
    """A picture of class indices; 255 where the class was not asked for."""

    encoding: Literal["png"]
    data: str = Field(description="Base64.")


class Refined(_Value):
    """The patches that stage 2 has looked at again."""

    rows: int
    columns: int
    patch: int = Field(description="Side of a patch in pixels.")
    patches: list[int] = Field(description="Their places, counted row by row from 0.")


class Segmentation(_Value):
    """What was found in an image."""

    request_id: str
    model: Answerer
    task: Literal["instance", "semantic"]
    height: int
    width: int
    instances: list[Instance] | None = None
    classes: list[ClassShare]
    mask: Mask | None = None
    refined: Refined | None = None


class Measurement(_Value):
    """Particle sizes, or areas of classes and the slag's band."""

    request_id: str
    model: Answerer
    task: Literal["instance", "semantic"]
    height: int
    width: int
    mm_per_px: float | None
    particles: list[dict[str, Any]] | None = None
    sizes: dict[str, Any] | None = None
    rosin_rammler: dict[str, Any] | None = None
    histogram: dict[str, Any] | None = None
    areas: list[dict[str, Any]] | None = None
    slag: dict[str, Any] | None = None
    note: str = ""


class Stored(_Value):
    """Where on S3 the answer lies."""

    request_id: str
    model: Answerer
    output: str
    bytes: int
    media_type: str


class S3Image(_Value):
    """An image on S3."""

    image: str = Field(description="s3://bucket/key", max_length=2000)
    output: str | None = Field(default=None, description="s3://bucket/prefix/ where the answer is stored.", max_length=2000)


class ModelSummary(_Value):
    """A model that is served."""

    name: str
    ready: bool
    version: str
    aliases: list[str]
    task: str
    classes: list[str]
    pipeline: bool = Field(description="Whether it also answers under /v1/refine.")
    note: str = Field(description="What is wrong, if anything.")


class ModelDetails(ModelSummary):
    """A model with its figures."""

    preset: str
    metrics: dict[str, float]
    cost: dict[str, float]
    score_threshold: float
    tile: int
    weights_sha256: str
    data_fingerprint: str


class ModelList(_Value):
    """All models."""

    models: list[ModelSummary]


class Health(_Value):
    """Whether the server is there."""

    status: str
