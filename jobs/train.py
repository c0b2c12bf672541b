"""Train one model and keep its package."""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

from stratum import storage
from stratum.cli import option_pairs, run_job, say
from stratum.cluster import JOB_CONFIG, results_folder
from stratum.cost import parse_size
from stratum.data.source import Dataset, DataSpec
from stratum.data.transforms import AugmentSpec, prediction_size, resolve_augmentation
from stratum.report.tables import index_table
from stratum.tracking import Run, check_reachable, open_run, tracking_uri, ui_command
from stratum.training.engine import TrainResult
from stratum.training.errors import NonFiniteLossError
from stratum.training.run import (
    check,
    check_device,
    check_name,
    claim,
    claimed,
    claimed_options,
    fetch_init,
    parameters,
    report_problems,
    resolved,
    run_local,
)
from stratum.training.spec import ModelSpec, Optimizer, Precision, RunSpec, Schedule, TrainSpec
from stratum_models.catalog import preset, resolve_config
from stratum_models.errors import UserError
from stratum_models.package import load_manifest

JOB_OPTIONS = ("workers", "register", "cost_size")  # kept beside the spec, for --resume


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to train, on which data, and where the results go."""

    data: str = "synthetic://ore?images=64&size=256&seed=0"
    """A folder or COCO JSON, local or s3://, or synthetic ore."""
    classes: str = ""
    """Categories to use and merge, such as roca+glomero=ore."""
    val_fraction: float = 0.2
    """How much is held out where the data have no validation part of their own."""
    split_seed: int = 0
    """Seed of that split."""
    skip_broken: bool = False
    """Go on without images and labels that are missing or broken."""
    storage: str = ""
    """URI of the folder for results; by default ./outputs, in a submitted job a folder of the user's own."""
    experiment: str = "train"
    """MLflow's experiment."""
    name: str = ""
    """The run's name, by default the model and the time; its results lie in a folder of this name."""
    resume: str = ""
    """Go on with the run of this name after an interruption; everything but --storage is then taken from it."""
    model: str = ""
    """Preset of the catalog; by default losnet, with --init the package's, with its options."""
    set: tuple[str, ...] = ()
    """Model options, such as head_convs=1."""
    init: str = ""
    """Package to fine-tune: a folder, s3://..., models:/name@champion or runs:/id/package. Other classes are allowed."""
    backbone_weights: str = "none"
    """"imagenet", a local file or a URI; "none" for random ones."""
    epochs: int = 100
    """Passes over the training images."""
    size: int = 256
    """Images are scaled to about this many pixels on their shorter side, in training and in validation; 0: as they are. The "paper"
    augmentation has sizes of its own."""
    augment: str = "strong"
    """Augmentation preset: none, paper or strong."""
    crop: int = 0
    """Train on squares of this side, cut from images of --size; 0: as the preset does, which is squares of --size or whole images."""
    mosaic: float | None = None
    """Share of images that are put together of four, instead of the preset's."""
    scale: tuple[float, float] | None = None
    """Lowest and highest random factor of an image's scale, instead of the preset's."""
    mosaic_off_last: int = 10
    """Epochs at the end without mosaic and copy-paste."""
    batch: int = 8
    """Images of an optimiser step, over all workers."""
    accumulate: int = 1
    """Parts in which a worker computes its share of a batch, one after the other."""
    optimizer: Optimizer = "adamw"
    """Optimiser."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Of convolutions and linear layers; norms and biases have none."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises."""
    clip_norm: float = 10.0
    """Longest gradient; 0: any."""
    ema_decay: float = 0.998
    """Of the averaged weights, which are evaluated and kept; 0: none."""
    precision: Precision = "fp32"
    """Of the network's arithmetic in training; bf16 is fast on new GPUs, and on CPUs that have it (avx512_bf16, amx_bf16)."""
    channels_last: bool = False
    """Keep colours innermost in memory, which convolutions on many GPUs and CPUs are faster with."""
    sync_bn: bool = False
    """Share BatchNorm's statistics among GPUs."""
    evaluate_every: int = 5
    """Epochs between evaluations."""
    patience: int = 0
    """Evaluations without a better one before training stops; 0: never."""
    time_budget_s: float = 0.0
    """Seconds after which training and evaluation have ended; 0: any."""
    workers: int = 1
    """Ray Train workers; 0: in this process, without Ray."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker takes."""
    loader_workers: int = 0
    """Processes that prepare batches, for each worker."""
    gpu: bool = False
    """One GPU for each worker."""
    overfit: int = 0
    """Train and evaluate on the first n training images: a check that a network can learn them; 0: off."""
    cost_size: str = "480x640"
    """Height x width that multiply-adds, latency and memory refer to."""
    register: str = ""
    """Also register the package in MLflow under this name."""
    half: bool = False
    """Store the package's weights in 16 bits."""
    seed: int = 0
    """Of weights, order and augmentation."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: give the number of Ray Train workers, or 0 to train in this process")
        if self.size < 0 or self.crop < 0:
            raise UserError(f"--size {self.size} --crop {self.crop}: give pixels, or 0")


def main(args: Args) -> int:
    """Train one model, keep the package with the best weights, and log everything to one MLflow run.

    The weights of the epoch with the highest mask AP50 on the validation images are kept (the averaged ones, with --ema-decay).
    """
    spec, earlier, args = (run_spec(args), None, args) if not args.resume else resumed(args)
    local, size = args.workers == 0, parse_size(args.cost_size)
    if local:
        check_device(spec)
    data = check(spec, say)
    report_problems(data, say)
    if not args.resume:
        check_name(spec)  # before the tracking store is asked, which would make a new sqlite file
    check_reachable(tracking_uri())
    options = {name: getattr(args, name) for name in JOB_OPTIONS}
    with ExitStack() as stack:
        if not local:
            stack.enter_context(cluster(spec))  # before a name is claimed: it may be too small
        if not args.resume:
            claim(spec, options=options)
        print(
            f"run {spec.name}: {len(data.train)} training images, {len(data.val)} for validation, classes {', '.join(data.classes)}",
            flush=True,
        )
        try:
            with open_run(spec.experiment, spec.name, parameters(spec), {"stratum.kind": "train"}, resume_id=earlier) as run:
                claim(spec, run.run_id, options)
                result = train(spec, run, local=local)
                stack.close()  # nothing else should run while the package is timed
                finish(result, spec, data, run, size, args.register)
        except KeyboardInterrupt:
            print(f"go on with: {resume_command(spec)}", flush=True)
            raise
        except NonFiniteLossError as error:
            print("error:", error, file=sys.stderr)
            return 1
    print(f"package: {result.package}\ncompare the runs with: {ui_command(run.uri)}")
    return 0


def resumed(args: Args) -> tuple[RunSpec, str | None, Args]:
    """The run that ``--resume`` names, its MLflow run, and the flags with the options that it was started with."""
    folder = storage.join(results_folder(args.storage), args.resume)
    spec, run_id = claimed(folder)
    known = {name: value for name, value in claimed_options(folder).items() if name in JOB_OPTIONS}
    return spec, run_id, replace(args, **known)


def resume_command(spec: RunSpec) -> str:
    """What to type to go on; the files of a submitted job are gone by then, so that it names the repository's."""
    program = ["python", "jobs/train.py"] if os.environ.get(JOB_CONFIG) else [sys.executable, str(Path(__file__).resolve())]
    return shlex.join([*program, "--storage", spec.storage, "--resume", spec.name])


def run_spec(args: Args) -> RunSpec:
    """The run that the flags describe, with every path absolute."""
    name, options = chosen_model(args)
    train_spec = TrainSpec(
        epochs=args.epochs,
        batch_size=args.batch,
        accumulate=args.accumulate,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        warmup_epochs=args.warmup_epochs,
        clip_norm=args.clip_norm,
        ema_decay=args.ema_decay,
        ema_tau=200.0,
        precision=args.precision,
        channels_last=args.channels_last,
        sync_bn=args.sync_bn,
        evaluate_every=args.evaluate_every,
        patience=args.patience,
        time_budget_s=args.time_budget_s,
        mosaic_off_last=args.mosaic_off_last,
        loader_workers=args.loader_workers,
        seed=args.seed,
    )
    spec = RunSpec(
        data=DataSpec(
            uri=args.data,
            classes=args.classes,
            val_fraction=args.val_fraction,
            split_seed=args.split_seed,
            skip_broken=args.skip_broken,
        ),
        model=ModelSpec(
            preset=name,
            overrides=options | overrides(name, args),
            init=args.init or None,
            backbone_weights=args.backbone_weights,
        ),
        train=train_spec,
        augment=augmentation(args),
        storage=results_folder(args.storage),
        experiment=args.experiment,
        name=args.name or f"{name}-{datetime.now():%Y%m%d-%H%M%S}",
        num_workers=max(args.workers, 1),
        use_gpu=args.gpu,
        cpus_per_worker=args.cpus_per_worker,
        overfit=args.overfit,
        half_package=args.half,
    )
    return resolved(spec)


def chosen_model(args: Args) -> tuple[str, dict[str, object]]:
    """Preset and options: those of the package to fine-tune where no model is named, but for the size at which it predicts."""
    if args.model or not args.init:
        return args.model or "losnet", {}
    manifest = load_manifest(fetch_init(args.init))
    return manifest.preset, {name: value for name, value in manifest.overrides.items() if not name.startswith("input_")}


def augmentation(args: Args) -> AugmentSpec:
    """The preset of the flags with what they change of it."""
    spec = resolve_augmentation(args.augment, args.size or None)
    if args.crop:
        sides = spec.short_sides or ((args.size,) if args.size else ())
        spec = replace(spec, crop=args.crop, short_sides=sides)
    if args.mosaic is not None:
        spec = replace(spec, mosaic=args.mosaic)
    return spec if args.scale is None else replace(spec, scale_range=args.scale)


def overrides(model: str, args: Args) -> dict[str, object]:
    """The options of ``--set``, with the size at which the model predicts."""
    known = {f.name for f in fields(resolve_config(model, {}))}
    scale = {name: value for name, value in prediction_size(args.augment, args.size).items() if name in known}
    return scale | option_pairs(args.set)


def train(spec: RunSpec, run: Run, *, local: bool) -> TrainResult:
    """The training, in this process or on Ray."""
    if local:
        from stratum.training.journal import open_journal

        with run.logger() as logger:
            return run_local(spec, open_journal(logger), say)
    from stratum.training.distributed import relayed, run_distributed

    with relayed(say) as say_from_afar:
        return run_distributed(spec, run_id=run.run_id, tracking_uri=run.uri, say=say_from_afar)


@contextmanager
def cluster(spec: RunSpec) -> Iterator[None]:
    """A Ray that can carry the run, imported only where it is used."""
    from stratum.cluster import ray_cluster

    with ray_cluster():
        from stratum.training.distributed import check_cluster

        check_cluster(spec)
        yield


def finish(result: TrainResult, spec: RunSpec, data: Dataset, run: Run, size: tuple[int, int], register: str) -> None:
    """Measures the package's costs, draws the figures, and logs both with the package."""
    from stratum.training.appraise import draw_figures, measured_costs, store_costs

    package = str(result.package)
    costs = measured_costs(result, spec, data, size)
    store_costs(package, costs)
    result = replace(result, metrics={**result.metrics, **costs})
    run.log_metrics(result.metrics, step=result.epochs)
    with tempfile.TemporaryDirectory(prefix="stratum-figures-") as folder:
        draw_figures(result, data, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            run.log_artifact(path, "evaluation")
    run.log_package(storage.fetch_tree(package), register or None)
    print("\n".join(f"{name:<22} {value:.6g}" for name, value in sorted(result.metrics.items())), flush=True)
    paper = preset(spec.model.preset).paper
    print("\n" + index_table([{"name": spec.name, "metrics": result.metrics, "paper": paper}]), flush=True)


if __name__ == "__main__":
    run_job(main, Args)
