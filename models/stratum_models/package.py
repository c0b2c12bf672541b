"""A model package: a folder with ``weights.safetensors`` and ``model.json``, which is all that is needed to predict.

Nothing in it is a pickle, so a package from a stranger can be loaded; the hash of the weights in ``model.json`` catches a copy that was
cut short or damaged.
"""

import hashlib
import json
import math
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, Prediction, SegmentationModel, Task

WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "model.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``model.json`` says about the weights beside it.

    ``depth_rule`` is the ``{"low": ..., "high": ...}`` that scales 16-bit images to 8 bits, None where the data had 8. ``score_threshold``
    is the one chosen on validation, 0 where there are no scores. ``cost_setting`` says what time and memory in ``cost`` were measured with:
    ``device``, ``threads`` and ``size``. ``tile`` is the side in pixels of the tiles that the images were cut into
    for training: larger images are best predicted in windows of that side; 0 where they were left whole. ``versions`` and
    ``weights_sha256`` are filled in by :func:`save_package`.
    """

    preset: str
    classes: tuple[str, ...]
    num_classes: int
    task: Task
    overrides: Mapping[str, object] = field(default_factory=dict)
    depth_rule: Mapping[str, int] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    cost_setting: Mapping[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""
    score_threshold: float = 0.0
    tile: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    weights_sha256: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"package format {self.format} is not the format {FORMAT} that this version reads: upgrade stratum_models")
        if self.task not in get_args(Task):
            raise UserError(f"task {self.task!r} is unknown: use one of {', '.join(get_args(Task))}")
        if len(self.classes) != self.num_classes:
            raise UserError(f"{len(self.classes)} class names for {self.num_classes} classes: give one name for each class")
        if not 0.0 <= self.score_threshold <= 1.0:
            raise UserError(f"score_threshold {self.score_threshold} is outside 0..1")
        if self.tile < 0:
            raise UserError(f"tile {self.tile} is below 0: give the side of the tiles in pixels, or 0 for whole images")

    def to_json(self) -> str:
        """The text of ``model.json``; metrics that are not finite are left out, since JSON has no word for them."""
        values = asdict(self)
        for name in ("metrics", "cost"):
            values[name] = {key: float(value) for key, value in values[name].items() if math.isfinite(value)}
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "Manifest":
        """The manifest in ``text``; ``source`` names it in the UserError raised where it is none."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError(f"holds a {type(values).__name__}, not an object")
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise TypeError(f"unknown fields {', '.join(sorted(unknown))}")
            values["classes"] = tuple(values["classes"])
            values["overrides"] = {name: _frozen(value) for name, value in values.get("overrides", {}).items()}
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{source}: not the manifest of a model package ({error}): export or fetch the package again") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedModel:
    """A model ready to predict (in eval mode, on the CPU) and what its package says about it."""

    model: SegmentationModel
    manifest: Manifest

    def predict(self, images: Sequence[Tensor]) -> list[Prediction]:
        """Predictions for images ``float32 [3, H, W]`` in 0..1, without the instances that score below the package's threshold."""
        return [above_threshold(prediction, self.manifest.score_threshold) for prediction in self.model.predict(images)]


def above_threshold(prediction: Prediction, threshold: float) -> Prediction:
    """The instances that score at least ``threshold``; a semantic prediction as it is."""
    if not isinstance(prediction, InstancePrediction):
        return prediction
    return prediction.where(prediction.scores >= threshold)


def save_package(folder: Path, model: nn.Module, manifest: Manifest, *, half: bool = False) -> Manifest:
    """Write a package and return its manifest with hash and versions.

    ``half`` stores floating-point weights in float16; they come back as float32. The package appears under its name at once and whole:
    it is written beside it first. A package already there is replaced.
    """
    weights = safetensors.torch.save(_to_store(model, half))
    filled = replace(manifest, weights_sha256=hashlib.sha256(weights).hexdigest(), versions={**_versions(), **manifest.versions})
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        content = temporary / "package"  # a folder of its own: mkdtemp's is readable by its owner only
        content.mkdir()
        (content / WEIGHTS_FILE).write_bytes(weights)
        (content / MANIFEST_FILE).write_text(filled.to_json(), encoding="utf-8")
        if folder.exists():
            folder.rename(temporary / "replaced")
        content.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return filled


def load_manifest(folder: Path) -> Manifest:
    """The manifest of the package at ``folder``, without its weights. Raises UserError where there is none."""
    path = folder / MANIFEST_FILE
    return Manifest.from_json(_read(path).decode("utf-8", errors="replace"), str(path))


def manifest_sha256(folder: Path) -> str:
    """The hash of a package's manifest, and so of the whole package: the manifest holds the hash of the weights."""
    return hashlib.sha256(_read(folder / MANIFEST_FILE)).hexdigest()


def load_package(folder: Path) -> LoadedModel:
    """The model of a package, its weights checked against the manifest's hash.

    Raises UserError, naming the file, where one is missing, was cut short or changed, or does not fit the preset.
    """
    from stratum_models.catalog import build_model  # here: reading a manifest should not cost the import of every network

    manifest = load_manifest(folder)
    path = folder / WEIGHTS_FILE
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.weights_sha256:
        expected = f"{manifest.weights_sha256[:12]}..." if manifest.weights_sha256 else "none"
        raise UserError(f"{path}: damaged (sha256 {found[:12]}..., {MANIFEST_FILE} says {expected}): copy or fetch the package again")
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}): export the package again") from error
    model = build_model(manifest.preset, num_classes=manifest.num_classes, overrides=manifest.overrides, backbone_weights=None)
    try:
        model.load_state_dict(state)  # copies into the model's own float32
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit preset {manifest.preset!r} ({reason}): load it with the version that wrote it") from error
    return LoadedModel(model=model.eval(), manifest=manifest)


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Copy into ``model`` what has the same name and shape in ``state``; the names on either side that did not match come back, sorted.

    For fine-tuning: with other classes the classifier is left as it was initialised and all else is taken. Raises UserError where not
    one parameter matches.
    """
    own = model.state_dict()
    matching = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    parameters = {name for name, _ in model.named_parameters()}
    if parameters and not parameters & matching.keys():
        raise UserError(f"none of the {len(state)} weights fits this model: start from a package of the same preset")
    model.load_state_dict(matching, strict=False)
    return sorted((own.keys() | state.keys()) - matching.keys())


def _to_store(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """The state of a model as independent tensors on the CPU, in float16 where that is asked and no finite value would be lost."""
    stored = {}
    for name, value in model.state_dict().items():
        tensor = value.detach().to("cpu", copy=True).contiguous()
        if half and tensor.dtype == torch.float32:
            small = tensor.half()
            tensor = small if torch.isfinite(small).all() else tensor  # a running variance can exceed float16's 65504
        stored[name] = tensor
    return stored


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "safetensors": safetensors.__version__}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing: a model package is a folder with {MANIFEST_FILE} and {WEIGHTS_FILE}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path and its permissions") from error


def _frozen(value: Any) -> Any:
    """JSON knows lists only; configurations hold tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
