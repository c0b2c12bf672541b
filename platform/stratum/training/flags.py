"""The flags of a training, and the run that they describe."""

from dataclasses import dataclass, fields, replace
from datetime import datetime

from stratum.cli import option_pairs
from stratum.cluster import results_folder
from stratum.data.flags import DataArgs
from stratum.data.frequencies import RULES, class_weights
from stratum.data.source import Dataset
from stratum.data.transforms import AugmentSpec, prediction_size, resolve_augmentation
from stratum.training.progress import Say
from stratum.training.recipes import Recipe, recipe_of
from stratum.training.run import fetch_init, resolved
from stratum.training.spec import ModelSpec, Optimizer, Precision, RunSpec, Schedule, TrainSpec
from stratum_models.batching import RESIZING
from stratum_models.catalog import resolve_config
from stratum_models.errors import UserError
from stratum_models.package import load_manifest

OF_THE_OPTIMISER = ("optimizer", "learning_rate", "weight_decay", "schedule", "warmup_epochs", "clip_norm", "ema_decay")
OF_THE_DATA = (*RESIZING, "class_weights")  # options that a package has from what it was trained on


@dataclass(frozen=True, kw_only=True)
class TrainArgs(DataArgs):
    """What to train, on which data, and where the results go."""

    data: str = "synthetic://ore?images=64&size=256&seed=0"
    """A folder or COCO JSON, local or s3://, or synthetic scenes (ore, coal, slag, cells, vessels)."""
    skip_broken: bool = False
    """Go on without images and labels that are missing or broken."""
    storage: str = ""
    """URI of the folder for results; by default ./outputs, in a submitted job a folder of the user's own."""
    experiment: str = "train"
    """MLflow's experiment."""
    name: str = ""
    """The run's name, by default the model and the time; its results lie in a folder of this name."""
    model: str = ""
    """Preset of the catalog; by default losnet, with --init the package's, with its options."""
    set: tuple[str, ...] = ()
    """Model options, such as head_convs=1."""
    class_weights: str = ""
    """Weights of the classes in the losses ce and ohem, for semantic models: inverse or median, counted on the training images, or
    numbers such as 1,4,2.5."""
    init: str = ""
    """Package to fine-tune: a folder, s3://..., models:/name@champion or runs:/id/package. Other classes are allowed."""
    backbone_weights: str = "none"
    """"imagenet", a local file or a URI; "none" for random ones."""
    epochs: int = 100
    """Passes over the training images."""
    size: int | None = None
    """Images are scaled to about this many pixels on their shorter side, in training and in validation; 0: as they are. With --tile all
    are scaled by size / tile, as windows are in prediction; left out, by nothing. The "paper" augmentation has sizes of its own. This and
    all that has no number here is by default the model's own recipe: its paper's for two_stage, sliding and unet_s2 (whole images), for
    all others 256."""
    augment: str = ""
    """Augmentation preset: none, paper, two_stage or strong (the default)."""
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
    optimizer: Optimizer | None = None
    """Optimiser; by default adamw."""
    learning_rate: float | None = None
    """Peak learning rate; by default 2e-3."""
    weight_decay: float | None = None
    """Of convolutions and linear layers; norms and biases have none. By default 0.05."""
    schedule: Schedule | None = None
    """How the learning rate falls after the warm-up; by default cosine."""
    warmup_epochs: float | None = None
    """Epochs in which the learning rate rises; by default 1."""
    clip_norm: float | None = None
    """Longest gradient; 0: any. By default 10."""
    ema_decay: float | None = None
    """Of the averaged weights, which are evaluated and kept; 0: none. By default 0.998."""
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
    half: bool = False
    """Store the package's weights in 16 bits."""
    seed: int = 0
    """Of weights, order and augmentation."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"--workers {self.workers}: give the number of Ray Train workers, or 0 to train in this process")
        if (self.size or 0) < 0 or self.crop < 0:
            raise UserError(f"--size {self.size} --crop {self.crop}: give pixels, or 0")


def run_spec(args: TrainArgs) -> RunSpec:
    """The run that the flags describe, with every path absolute."""
    name, options = chosen_model(args)
    args = with_recipe(args, recipe_of(name))
    train_spec = TrainSpec(
        epochs=args.epochs,
        batch_size=args.batch,
        accumulate=args.accumulate,
        **{name: getattr(args, name) for name in OF_THE_OPTIMISER},
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
        data=args.data_spec(skip_broken=args.skip_broken),
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


def with_recipe(args: TrainArgs, recipe: Recipe) -> TrainArgs:
    """The flags, with the recipe's values where none were given."""
    known = {f.name: getattr(recipe, f.name) for f in fields(recipe)} | ({"size": 0} if args.tile else {})
    return replace(args, **{name: value for name, value in known.items() if getattr(args, name) in (None, "")})


def chosen_model(args: TrainArgs) -> tuple[str, dict[str, object]]:
    """Preset and options: those of the package to fine-tune where no model is named, but for what it has from its own data."""
    if args.model or not args.init:
        return args.model or "losnet", {}
    manifest = load_manifest(fetch_init(args.init))
    return manifest.preset, {name: value for name, value in manifest.overrides.items() if name not in OF_THE_DATA}


def augmentation(args: TrainArgs) -> AugmentSpec:
    """The preset of the flags with what they change of it."""
    spec = resolve_augmentation(args.augment, args.size, args.tile)
    if args.crop:
        spec = replace(spec, crop=args.crop)
    if args.mosaic is not None:
        spec = replace(spec, mosaic=args.mosaic)
    return spec if args.scale is None else replace(spec, scale_range=args.scale)


def overrides(model: str, args: TrainArgs) -> dict[str, object]:
    """The options of ``--set``, with the size at which the model predicts and the class weights that are given as numbers."""
    known = {f.name for f in fields(resolve_config(model, {}))}
    assert args.size is not None  # from the recipe, where it was not given
    options: dict[str, object] = {**option_pairs(args.set)}
    if args.class_weights:
        if "class_weights" not in known:
            raise UserError(f"--class-weights: model {model} is not a semantic one: leave the flag out")
        if "class_weights" in options:
            raise UserError("--class-weights and --set class_weights say the same: give one of them")
    if args.class_weights and args.class_weights not in RULES:
        options["class_weights"] = args.class_weights
    scale = {name: value for name, value in prediction_size(args.augment, args.size, args.tile).items() if name in known}
    return scale | options


def with_class_weights(spec: RunSpec, data: Dataset, rule: str, say: Say) -> RunSpec:
    """The run with the weights that a rule gives on its training images: as numbers, so that the package has them too."""
    weights = class_weights(data.train.records, len(data.classes), rule)
    say("class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in zip(data.classes, weights, strict=True)))
    return replace(spec, model=replace(spec.model, overrides={**spec.model.overrides, "class_weights": weights}))
