"""What the jobs that sweep have in common: their flags, and the way from those to a report. A job adds its study and its defaults."""

import re
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from stratum.allocator import worker_environment
from stratum.cli import option_pairs, say
from stratum.cost import parse_size
from stratum.data.flags import DataArgs
from stratum.data.frequencies import RULES
from stratum.data.transforms import prediction_size, resolve_augmentation
from stratum.training.recipes import recipe_of
from stratum.training.spec import ModelSpec, Precision, RunSpec, TrainSpec
from stratum.tuning.space import parse_tables
from stratum.tuning.spec import SWEEP_FILE, SweepSpec
from stratum.tuning.studies import find_study
from stratum_models.batching import RESIZING
from stratum_models.catalog import CATALOG
from stratum_models.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SweepArgs(DataArgs):
    """What to sweep over, on which data, and where the results go."""

    space: Literal["ablation", "search"] = "ablation"
    """"ablation": the tables. "search": the joint space, with Optuna and ASHA, beside --models."""
    tables: str = ""
    """Tables of the ablation, such as 2,4 or all; by default the paper's, or none where --models names what to compare."""
    models: str = ""
    """Models to compare, with the tables or with what a search draws, separated by commas: presets, or such as
    losnet:head_convs=1+norm=gn."""
    trials: int = 16
    """Trials of a search."""
    skip_broken: bool = False
    """Go on without images and labels that are missing or broken."""
    storage: str = ""
    """URI of the folder for results; by default ./outputs, in a submitted job a folder of the user's own."""
    experiment: str
    """MLflow's experiment."""
    name: str = ""
    """The sweep's name, by default its space and the time."""
    resume: str = ""
    """Go on with the sweep of this name; everything but --storage is then taken from it."""
    epochs: int = 60
    """Epochs of a trial."""
    size: int | None = None
    """Images are scaled to about this many pixels on their shorter side, in training and in validation; 0: as they are. With --tile all
    are scaled by size / tile; left out, by nothing. The "paper" augmentation has sizes of its own. This, --learning-rate and --augment are
    by default those of the study's network: its paper's for two_stage (whole images), for all others 256, 2e-3 with AdamW and cosine, and
    strong."""
    batch: int = 8
    """Images of an optimiser step."""
    learning_rate: float | None = None
    """Peak learning rate; a search varies it by a factor of 4 either way."""
    augment: str = ""
    """Augmentation preset: none, paper, two_stage or strong."""
    class_weights: str = ""
    """Weights of the classes in the losses ce and ohem, for semantic models: inverse or median, counted on the training images, or
    numbers such as 1,4,2.5."""
    backbone_weights: str = "none"
    """"imagenet", a local file or a URI; "none" for random ones."""
    set: tuple[str, ...] = ()
    """Model options of every trial, such as mask_channels=64; a trial takes those that its network has."""
    workers: int = 1
    """Ray Train workers of a trial."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker takes."""
    gpu: bool = False
    """One GPU for each worker."""
    max_concurrent: int = 0
    """Trials side by side; 0: as many as the cluster has room for."""
    finalists: int = 0
    """Trials that are timed at the end; 0: all of a grid, at most 6 of a search."""
    timing_rounds: int = 15
    """Times that each finalist is timed; 0: neither time nor memory is measured."""
    cost_size: str = "512x512"
    """Height x width that multiply-adds, latency and memory refer to; empty: the median size of the validation images."""
    register: str
    """Name of the winner in MLflow's registry; "none" leaves it out."""
    keep: str = ""
    """A folder below --storage that also gets the winner's package, in the place of an earlier one, such as best-package."""
    precision: Precision = "fp32"
    """Of the networks' arithmetic in training; bf16 is fast on new GPUs, and on CPUs that have it (avx512_bf16, amx_bf16)."""
    channels_last: bool = False
    """Keep colours innermost in memory, which convolutions on many GPUs and CPUs are faster with."""
    evaluate_every: int = 5
    """Epochs between evaluations."""
    seed: int = 0
    """Seed of weights, order, augmentation and search."""


def sweep_job(study: str, args: SweepArgs) -> int:
    """The whole job, from flags to report: the body of every ``main``. Returns 1 where no trial finished.

    Raises:
        UserError: flags, data or networks cannot be used; nothing is written then.
    """
    from stratum.cluster import ray_cluster, results_folder
    from stratum.tracking import check_reachable, tracking_uri
    from stratum.training.run import check_unchanged
    from stratum.tuning.checks import check_free, check_sweep
    from stratum.tuning.spec import load_sweep

    folder = f"{results_folder(args.storage)}/{args.resume}"
    if args.resume:
        sweep, earlier = load_sweep(folder)
    else:
        sweep, earlier = sweep_spec(study, args), None
    sweep, data = check_sweep(sweep, say)
    if args.resume:
        check_unchanged(f"{folder}/{SWEEP_FILE}", data, sweep.base.data)
    else:
        check_free(sweep)  # before the tracking store is asked, which would make a new sqlite file
    check_reachable(tracking_uri())
    print(f"sweep {sweep.name}: {sweep.total} trials, {sweep.base.train.epochs} epochs each, results in {sweep.folder}", flush=True)
    with ray_cluster(env=worker_environment(use_gpu=sweep.base.use_gpu)):
        return run(sweep, earlier, data.fingerprint, resume=bool(args.resume))


def run(sweep: SweepSpec, earlier: str | None, fingerprint: str, *, resume: bool) -> int:
    """The sweep inside its MLflow run; exit code 1 where no trial finished."""
    from stratum.shared import check_shared
    from stratum.tracking import open_run, tracking_uri
    from stratum.training.distributed import check_cluster
    from stratum.tuning.outcome import show, time_finalists
    from stratum.tuning.preparation import lay_groundwork
    from stratum.tuning.spec import save_sweep
    from stratum.tuning.sweep import run_sweep

    check_cluster(sweep.base)
    check_shared(sweep.base.storage, tracking_uri())
    if not resume:
        save_sweep(sweep, None, fingerprint)

    tags = {"stratum.sweep": sweep.name, "stratum.kind": "sweep"}
    with open_run(sweep.base.experiment, sweep.name, asdict(sweep), tags, resume_id=earlier) as parent:
        save_sweep(sweep, parent.run_id, fingerprint)
        try:
            lay_groundwork(sweep, parent.run_id, parent.uri, say)
        except KeyboardInterrupt:
            say_how_to_go_on(sweep)
            raise
        rows, interrupted = run_sweep(sweep, parent.run_id, parent.uri, resume=resume, say=say)
        try:
            rows = rows if interrupted else time_finalists(rows, sweep, parent.uri, say)
        except KeyboardInterrupt:
            interrupted = True
        show(rows, sweep, parent, partial=interrupted)
        if interrupted:
            say_how_to_go_on(sweep)
            raise KeyboardInterrupt
    return 0 if any(row.state == "finished" for row in rows) else 1


def say_how_to_go_on(sweep: SweepSpec) -> None:
    """Prints the command that resumes a sweep."""
    again = [sys.executable, f"jobs/tune_{sweep.study}.py", "--storage", sweep.base.storage, "--resume", sweep.name]
    print(f"interrupted; go on with: {shlex.join(again)}", flush=True)


def sweep_spec(study: str, args: SweepArgs) -> SweepSpec:
    """The sweep that the flags describe, with every path absolute."""
    from stratum.cluster import results_folder
    from stratum.training.run import resolved

    models = split_models(args.models)
    name = args.name or f"{'models' if models and args.space == 'ablation' else args.space}-{datetime.now():%Y%m%d-%H%M%S}"
    plan = find_study(study)
    tables = parse_tables(plan, args.tables or "paper") if args.tables or not models else ()
    return SweepSpec(
        name=name,
        base=resolved(base_run(plan.preset, name, args)),
        study=study,
        space=args.space,
        tables=tables if args.space == "ablation" else (),
        models=models,
        extra=options(plan.preset, args),
        class_weights=args.class_weights if args.class_weights in ("none", *RULES) else "",
        trials=args.trials,
        max_concurrent=args.max_concurrent,
        cost_size=parse_size(args.cost_size) if args.cost_size else (0, 0),
        finalists=args.finalists,
        timing_rounds=args.timing_rounds,
        register_as="" if args.register == "none" else args.register,
        keep_as=f"{results_folder(args.storage)}/{args.keep}" if args.keep else "",
    )


def split_models(text: str) -> tuple[str, ...]:
    """The entries of ``--models``: a comma that no preset's name follows belongs to an option."""
    parts = re.split(rf",(?=\s*(?:{'|'.join(map(re.escape, CATALOG))})\s*(?:[:,]|$))", text)
    return tuple(part.strip(" ,") for part in parts if part.strip(" ,"))


def base_run(preset: str, name: str, args: SweepArgs) -> RunSpec:
    """What every trial has in common."""
    from stratum.cluster import results_folder

    recipe = recipe_of(preset)
    train = TrainSpec(
        epochs=args.epochs,
        batch_size=args.batch,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate if args.learning_rate is None else args.learning_rate,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        warmup_epochs=recipe.warmup_epochs,
        ema_decay=recipe.ema_decay,
        ema_tau=200.0,
        evaluate_every=args.evaluate_every,
        checkpoint_every=args.evaluate_every,
        clip_norm=recipe.clip_norm,
        precision=args.precision,
        channels_last=args.channels_last,
        mosaic_off_last=min(10, args.epochs // 5),
        seed=args.seed,
    )
    return RunSpec(
        data=args.data_spec(skip_broken=args.skip_broken),
        model=ModelSpec(preset=preset, backbone_weights=args.backbone_weights),
        storage=results_folder(args.storage),
        experiment=args.experiment,
        name=name,
        train=train,
        augment=resolve_augmentation(args.augment or recipe.augment, size_of(preset, args), args.tile),
        num_workers=args.workers,
        use_gpu=args.gpu,
        cpus_per_worker=args.cpus_per_worker,
        max_failures=1,
    )


def size_of(preset: str, args: SweepArgs) -> int:
    """Pixels of the shorter side that images are scaled to, or a tile's side; 0: none."""
    if args.size is None:
        return 0 if args.tile else recipe_of(preset).size
    return args.size


def options(preset: str, args: SweepArgs) -> dict[str, object]:
    """The options of every trial's network: those of ``--set``, the size at which it predicts, and class weights given as numbers."""
    given: dict[str, object] = {**option_pairs(args.set)}
    if unfit := given.keys() & set(RESIZING):
        raise UserError(f"--set {', '.join(sorted(unfit))}: say it with --size")
    if args.class_weights and "class_weights" in given:
        raise UserError("--class-weights and --set class_weights say the same: give one of them")
    if args.class_weights not in ("", "none", *RULES):
        given["class_weights"] = args.class_weights
    return {**given, **prediction_size(args.augment, size_of(preset, args), args.tile)}
