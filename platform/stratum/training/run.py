"""A whole run: data and model from a spec, training, the final evaluation, the package."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import nn

from stratum import storage
from stratum.allocator import keep_freed_memory
from stratum.data.loader import Loader, build_loader
from stratum.data.source import Dataset, DataSpec, load_data, require_task
from stratum.metrics.names import BEST_METRIC
from stratum.training.context import Context, LocalContext
from stratum.training.engine import Log, TrainResult, train
from stratum.training.evaluation import Evaluator, collect, evaluate, evaluator_for
from stratum.training.patches import check_patches
from stratum.training.progress import Say, say_nothing
from stratum.training.spec import ModelSpec, RunSpec, from_dict, to_dict
from stratum_models.catalog import build_model, preset, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel
from stratum_models.package import MANIFEST_FILE, Manifest, load_matching, load_package, save_package

RUN_FILE = "run.json"
NAMED = ("empty class", "black and white", "shape left out", "ids or classes")  # warnings of which each may spoil a whole training


def check(spec: RunSpec, say: Say = say_nothing, data: Dataset | None = None) -> Dataset:
    """Reads and builds everything once in the driver, so that bad input ends here, with nothing written.

    ``say`` hears what a fine-tuning takes from its package. ``data`` are the run's, where they are read already.

    Raises:
        UserError: the model, the data, their fit, the weights to start from or the batch size cannot be used.
    """
    resolve_config(spec.model.preset, spec.model.overrides)
    data = data or load(spec)
    require_task(data, preset(spec.model.preset).task, f"model {spec.model.preset}", spec.data)
    if not len(data.val):
        raise UserError(f"{spec.data.uri}: no validation images: add a val part or raise the validation fraction")
    spec.train.check_batch(len(data.train), spec.num_workers)
    check_patches(spec, data)
    make_model(spec.model, data.classes, say)
    return data


def check_device(spec: RunSpec) -> None:
    """Refuses a run in this process on a GPU that is not there.

    Raises:
        UserError: the run asks for a GPU and this machine has none that PyTorch can use.
    """
    if spec.use_gpu and not torch.cuda.is_available():
        raise UserError("--gpu: this machine has no usable GPU: leave the flag out")


def report_problems(data: Dataset, say: Say) -> None:
    """Names everything that ``skip_broken`` leaves out and the first of each kind in ``NAMED``, and counts the warnings by their kind."""
    for problem in data.problems:
        if problem.severity == "error":
            say(f"left out: {problem.kind}: {problem.uri}: {problem.detail}")
    warnings = Counter(problem.kind for problem in data.problems if problem.severity == "warning")
    if warnings:
        say("warnings on the data: " + ", ".join(f"{kind} ({count})" for kind, count in warnings.most_common()))
    for kind in NAMED:
        found = [problem for problem in data.problems if problem.kind == kind]
        for problem in found[:5]:
            say(str(problem))
        if len(found) > 5:
            say(f"and {len(found) - 5} more of kind {kind}: jobs/check_data.py lists them")


def load(spec: RunSpec) -> Dataset:
    """The data of a run."""
    data = load_data(spec.data)
    if not spec.overfit:
        return data
    few = data.train.subset(range(min(spec.overfit, len(data.train))))
    return replace(data, train=few, val=few)


def resolved(spec: RunSpec) -> RunSpec:
    """The spec with every path absolute, since workers run in another folder, and the model's options in their own types."""
    uri = spec.data.uri if storage.is_synthetic(spec.data.uri) else storage.resolve(spec.data.uri)
    config = resolve_config(spec.model.preset, spec.model.overrides)
    model = replace(spec.model, overrides={name: getattr(config, name) for name in spec.model.overrides})
    if model.init and ":" not in model.init:
        model = replace(model, init=storage.resolve(model.init))
    if model.backbone_weights in ("", "none"):
        model = replace(model, backbone_weights=None)
    elif model.backbone_weights and model.backbone_weights != "imagenet":
        model = replace(model, backbone_weights=storage.resolve(model.backbone_weights))
    return replace(spec, data=replace(spec.data, uri=uri), model=model, storage=storage.resolve(spec.storage))


def run_folder(spec: RunSpec) -> str:
    """The URI of the run's own folder."""
    return storage.join(spec.storage, spec.name)


def check_name(spec: RunSpec) -> None:
    """Looks, without writing, whether the run's place is free.

    Raises:
        UserError: a run of this name is there already, or the storage cannot be read.
    """
    if storage.exists(storage.join(run_folder(spec), RUN_FILE)):
        raise UserError(f"{run_folder(spec)}: a run of this name is there already; go on with --resume {spec.name} or choose another name")


def claim(spec: RunSpec, run_id: str | None = None, options: Mapping[str, object] | None = None, fingerprint: str = "") -> None:
    """Writes the run's ``run.json``: what is run, its MLflow run once there is one, options of the job that are not in the spec, and the
    fingerprint of the data, for :func:`check_unchanged`.

    Raises:
        UserError: a run of this name is there already (where no MLflow run is given), or the storage cannot be written.
    """
    if run_id is None:
        check_name(spec)
    values = {"spec": to_dict(spec), "run_id": run_id, "options": dict(options or {}), "data_fingerprint": fingerprint}
    storage.write_json(storage.join(run_folder(spec), RUN_FILE), values)


def check_unchanged(uri: str, data: Dataset, spec: DataSpec) -> None:
    """Refuses to go on with other data than what the JSON file of a run or a sweep notes; one of an earlier version notes none.

    Raises:
        UserError: images, labels or their split have changed.
    """
    if storage.read_json(uri).get("data_fingerprint") not in (None, "", data.fingerprint):
        raise UserError(
            f"{spec.uri}: images or labels have changed since {storage.parent(uri)} was begun: restore them, or start anew under another "
            "--name (train.py keeps what was learned with --init and a package)"
        )


def claimed(folder: str) -> tuple[RunSpec, str | None]:
    """What :func:`claim` wrote for the run in a folder.

    Raises:
        UserError: there is no such run.
    """
    values = _run_file(folder)
    return from_dict(values["spec"]), values["run_id"]


def claimed_options(folder: str) -> dict[str, Any]:
    """The job's options that :func:`claim` wrote beside the spec; empty for a run of an earlier version.

    Raises:
        UserError: there is no such run.
    """
    return dict(_run_file(folder).get("options", {}))


def _run_file(folder: str) -> dict[str, Any]:
    uri = storage.join(folder, RUN_FILE)
    if not storage.exists(uri):
        raise UserError(f"{folder}: no run to go on with: its {RUN_FILE} is missing; check --storage and the name")
    values: dict[str, Any] = storage.read_json(uri)
    return values


def parameters(spec: RunSpec) -> dict[str, Any]:
    """What MLflow shows of a run: the spec with every option of the network, so that runs can be compared whatever they override."""
    return {**to_dict(spec), "model": {**asdict(spec.model), "overrides": asdict(resolve_config(spec.model.preset, spec.model.overrides))}}


def execute(spec: RunSpec, context: Context, log: Log | None = None, say: Say = say_nothing, data: Dataset | None = None) -> TrainResult:
    """Trains what the spec says, on this rank; rank 0 writes the package to ``<storage>/<name>/package``.

    The result's metrics are those of the package: the weights of the epoch with the highest :data:`BEST_METRIC` (the EMA's,
    where there is one), evaluated once more on the validation images, from which the score threshold of
    instances is chosen too. ``data`` are the spec's where they have been loaded, which takes decoding every image.
    """
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if context.device.type == "cpu":
        keep_freed_memory()
    data = data or load(spec)
    torch.manual_seed(spec.train.seed)  # every rank starts from the same weights
    model = make_model(spec.model, data.classes)
    loader, images = build_loaders(spec, data, context)
    result = train(
        model,
        loader,
        evaluation(data, images, context),
        spec.train,
        context,
        best_metric=BEST_METRIC[data.task],
        log=log,
        say=say,
        config=to_dict(spec),
    )
    if spec.half_package:
        round_to_half(model)  # before the evaluation, whose metrics are then of the weights that are stored
    evaluator = collect(model, images, evaluator_for(data.task, data.classes), context)
    if evaluator is not None:
        result = write_package(spec, data, model, result, evaluator)
        say(f"{result.stop_reason}; kept the weights of epoch {result.kept_epoch}: {result.package}")
    return context.gather(result)[0]


def run_local(
    spec: RunSpec, log: Log | None = None, say: Say = say_nothing, stop: Event | None = None, data: Dataset | None = None
) -> TrainResult:
    """The run in this process, without Ray; a run that was interrupted goes on from its last checkpoint.

    Raises:
        StoppedError: ``stop`` was set, and a checkpoint is written.
    """
    device = "cuda" if spec.use_gpu else "cpu"
    return execute(spec, LocalContext(run_folder(spec), device, stop), log, say, data)


def make_model(spec: ModelSpec, classes: tuple[str, ...], say: Say = say_nothing) -> SegmentationModel:
    """The model of a spec, with the weights it starts from; ``say`` hears which of them a package to fine-tune has not."""
    weights = spec.backbone_weights
    if weights and weights != "imagenet":
        weights = str(storage.fetch(weights))
    model = build_model(spec.preset, num_classes=len(classes), overrides=spec.overrides, backbone_weights=weights)
    if spec.init:
        unmatched = load_matching(model, load_package(fetch_init(spec.init)).model.state_dict())
        own = model.state_dict().keys()
        new = [name for name in unmatched if name in own]
        listed = ", ".join(new[:6]) + (f" and {len(new) - 6} more" if len(new) > 6 else "")
        say(f"{len(own) - len(new)} of {len(own)} tensors taken from {spec.init}; new: {listed or 'none'}")
    return model


@torch.no_grad()
def round_to_half(model: nn.Module) -> None:
    """Rounds weights to what float16 can hold, those aside that it cannot, as :func:`stratum_models.package.save_package` does."""
    for value in model.state_dict().values():
        if value.dtype == torch.float32 and torch.isfinite(small := value.half()).all():
            value.copy_(small)


def fetch_init(uri: str) -> Path:
    """A local copy of a package: ``models:/name@alias``, ``runs:/id/package``, a folder, or ``s3://``."""
    from stratum.registry import fetch_package  # here: it imports MLflow, which takes seconds

    return fetch_package(uri)


def build_loaders(spec: RunSpec, data: Dataset, context: Context) -> tuple[Loader, Loader]:
    """This rank's training batches, and its share of the validation images."""
    build = partial(
        build_loader,
        batch_size=spec.train.part_size(context.world_size),
        seed=spec.train.seed,
        workers=spec.train.loader_workers,
        rank=context.rank,
        world_size=context.world_size,
    )
    return build(data.train, transform=spec.augment, shuffle=True), build(data.val, shuffle=False)


def evaluation(data: Dataset, images: Loader, context: Context) -> Callable[[nn.Module], dict[str, float]]:
    """What the loop calls to evaluate its weights."""
    return lambda model: evaluate(model, images, evaluator_for(data.task, data.classes), context)


def write_package(spec: RunSpec, data: Dataset, model: SegmentationModel, result: TrainResult, evaluator: Evaluator) -> TrainResult:
    """Writes the package beside the checkpoints and names it in the result, with the metrics of exactly these weights."""
    metrics = {**result.metrics, **evaluator.compute()}
    manifest = Manifest(
        preset=spec.model.preset,
        overrides=dict(spec.model.overrides),
        classes=data.classes,
        num_classes=len(data.classes),
        task=data.task,
        depth_rule=asdict(data.depth) if data.depth else None,
        metrics={name: value for name, value in metrics.items() if not name.startswith(("cost/", "train/"))},
        cost={name: value for name, value in metrics.items() if name.startswith("cost/")},
        data_fingerprint=data.fingerprint,
        score_threshold=evaluator.best_score_threshold(),
        tile=spec.data.tile,
    )
    uri = storage.join(run_folder(spec), "package")
    with tempfile.TemporaryDirectory(prefix="stratum-package-") as folder:
        save_package(Path(folder) / "package", model, manifest, half=spec.half_package)
        storage.upload_tree(Path(folder) / "package", uri, last=(MANIFEST_FILE,))
    return replace(result, metrics=metrics, package=uri)
