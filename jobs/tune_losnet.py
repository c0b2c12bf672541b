"""The sweep over LosNet: the paper's ablation grid, a search of the joint space, or presets side by side."""

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from stratum.cli import option_pairs, run_job, say
from stratum_models.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to sweep over, on which data, and where the results go."""

    space: Literal["ablation", "search"] = "ablation"
    """"ablation": the paper's Tables 1 to 6. "search": the joint space, with Optuna and ASHA."""
    tables: str = ""
    """Tables of the ablation, such as 2,4; by default all, or none where --models names what to compare."""
    models: str = ""
    """Models to compare, separated by commas: presets, or such as losnet:head_convs=1+norm=gn."""
    trials: int = 16
    """Trials of a search."""
    data: str = "synthetic://ore?images=64&size=256&seed=0"
    """A folder or COCO JSON, local or s3://, or synthetic ore."""
    classes: str = ""
    """Categories to use and merge, such as roca+glomero=ore."""
    skip_broken: bool = False
    """Go on without images and labels that are missing or broken."""
    storage: str = ""
    """URI of the folder for results; by default ./outputs, in a submitted job a folder of the user's own."""
    experiment: str = "losnet-sweep"
    """MLflow's experiment."""
    name: str = ""
    """The sweep's name, by default its space and the time."""
    resume: str = ""
    """Go on with the sweep of this name; everything but --storage is then taken from it."""
    epochs: int = 60
    """Epochs of a trial."""
    size: int = 256
    """Images are scaled to about this many pixels on their shorter side, in training and in validation; "paper" has sizes of its own."""
    batch: int = 8
    """Images of an optimiser step."""
    learning_rate: float = 2e-3
    """Peak learning rate (AdamW, cosine); a search varies it by a factor of 4 either way."""
    augment: str = "strong"
    """Augmentation preset: none, paper or strong."""
    backbone_weights: str = "none"
    """"imagenet", a local file or a URI; "none" for random ones."""
    set: tuple[str, ...] = ()
    """Model options of every trial, such as mask_channels=64."""
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
    cost_size: str = "480x640"
    """Height x width that multiply-adds, latency and memory refer to."""
    register: str = "losnet"
    """Name of the winner in MLflow's registry; "none" leaves it out."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the networks' arithmetic in training; bf16 is fast on new GPUs, and on CPUs that have it (avx512_bf16, amx_bf16)."""
    channels_last: bool = False
    """Keep colours innermost in memory, which convolutions on many GPUs and CPUs are faster with."""
    evaluate_every: int = 5
    """Epochs between evaluations."""
    seed: int = 0
    """Seed of weights, order, augmentation and search."""
    demo: bool = False
    """A small sweep on synthetic ore that takes minutes: fills in every flag that is not given."""


# LosNet with the paper's two pyramids (Table 6) and two lighter variants, small enough for two cores.
DEMO: dict[str, Any] = {
    "tables": "6",
    "models": "losnet:fpn_channels=64,losnet:head_convs=1",
    "data": "synthetic://ore?images=48&size=128&seed=0&rocks=14&d50=20&empty=0.05",
    "experiment": "losnet-demo",
    "epochs": 12,
    "size": 128,
    "batch": 6,
    "evaluate_every": 4,
    "timing_rounds": 7,
}


def main(args: Args) -> int:
    """Train many variants of LosNet, compare them beside the paper's figures, and keep the best.

    Ends with a table, a plot of the Pareto front and the winner's package; all of it is also in the sweep's MLflow run.
    """
    from stratum.cluster import ray_cluster, results_folder
    from stratum.tracking import check_reachable, tracking_uri
    from stratum.tuning.checks import check_free, check_sweep
    from stratum.tuning.spec import load_sweep

    if args.resume:
        sweep, earlier = load_sweep(f"{results_folder(args.storage)}/{args.resume}")
    else:
        sweep, earlier = sweep_spec(with_demo(args)), None
    grid = sweep.grid()
    check_sweep(sweep, say)
    if not args.resume:
        check_free(sweep)  # before the tracking store is asked, which would make a new sqlite file
    check_reachable(tracking_uri())
    planned = f"{len(grid.variants)} variants" if grid else f"{sweep.trials} trials"
    print(f"sweep {sweep.name}: {planned}, {sweep.base.train.epochs} epochs each, results in {sweep.folder}", flush=True)
    with ray_cluster():
        return run(sweep, earlier, resume=bool(args.resume))


def run(sweep: Any, earlier: str | None, *, resume: bool) -> int:
    """The sweep inside its MLflow run; exit code 1 where no trial finished."""
    from stratum.tracking import open_run
    from stratum.training.distributed import check_cluster
    from stratum.tuning.outcome import show, time_finalists
    from stratum.tuning.spec import save_sweep
    from stratum.tuning.sweep import run_sweep

    check_cluster(sweep.base)
    if not resume:
        save_sweep(sweep, None)

    tags = {"stratum.sweep": sweep.name, "stratum.kind": "sweep"}
    with open_run(sweep.base.experiment, sweep.name, asdict(sweep), tags, resume_id=earlier) as parent:
        save_sweep(sweep, parent.run_id)
        rows, interrupted = run_sweep(sweep, parent.run_id, parent.uri, resume=resume, say=say)
        try:
            rows = rows if interrupted else time_finalists(rows, sweep, parent.uri, say)
        except KeyboardInterrupt:
            interrupted = True
        show(rows, sweep, parent, partial=interrupted)
        if interrupted:
            again = [sys.executable, "jobs/tune_losnet.py", "--storage", sweep.base.storage, "--resume", sweep.name]
            print(f"interrupted; go on with: {shlex.join(again)}", flush=True)
            raise KeyboardInterrupt
    return 0 if any(row.state == "finished" for row in rows) else 1


def sweep_spec(args: Args) -> Any:
    """The sweep that the flags describe, with every path absolute."""
    from stratum.cluster import results_folder
    from stratum.cost import parse_size
    from stratum.data.source import DataSpec
    from stratum.data.transforms import prediction_size, resolve_augmentation
    from stratum.training.run import resolved
    from stratum.training.spec import ModelSpec, RunSpec, TrainSpec
    from stratum.tuning.space import parse_tables
    from stratum.tuning.spec import SweepSpec

    models = tuple(part.strip() for part in args.models.split(",") if part.strip())
    extra: dict[str, object] = {**option_pairs(args.set)}
    if {"input_short", "input_long"} & extra.keys():
        raise UserError("--set input_short, input_long: say it with --size")
    name = args.name or f"{'models' if models else args.space}-{datetime.now():%Y%m%d-%H%M%S}"
    train = TrainSpec(
        epochs=args.epochs,
        batch_size=args.batch,
        optimizer="adamw",
        learning_rate=args.learning_rate,
        weight_decay=0.05,
        schedule="cosine",
        ema_decay=0.998,
        ema_tau=200.0,
        evaluate_every=args.evaluate_every,
        checkpoint_every=args.evaluate_every,
        clip_norm=10.0,
        precision=args.precision,
        channels_last=args.channels_last,
        mosaic_off_last=min(10, args.epochs // 5),
        seed=args.seed,
    )
    base = RunSpec(
        data=DataSpec(uri=args.data, classes=args.classes, skip_broken=args.skip_broken),
        model=ModelSpec(preset="losnet", backbone_weights=args.backbone_weights),
        storage=results_folder(args.storage),
        experiment=args.experiment,
        name=name,
        train=train,
        augment=resolve_augmentation(args.augment, args.size),
        num_workers=args.workers,
        use_gpu=args.gpu,
        cpus_per_worker=args.cpus_per_worker,
        max_failures=1,
    )
    return SweepSpec(
        name=name,
        base=resolved(base),
        space=args.space,
        tables=parse_tables(args.tables or "all") if args.tables or not models else (),
        models=models,
        extra={**extra, **prediction_size(args.augment, args.size)},
        trials=args.trials,
        max_concurrent=args.max_concurrent,
        cost_size=parse_size(args.cost_size),
        finalists=args.finalists,
        timing_rounds=args.timing_rounds,
        register_as="" if args.register == "none" else args.register,
    )


def with_demo(args: Args) -> Args:
    """The flags, with --demo's own values for those that were not given."""
    if not args.demo:
        return args
    plain = Args()
    untouched = {name: value for name, value in DEMO.items() if getattr(args, name) == getattr(plain, name)}
    return replace(args, **untouched)


if __name__ == "__main__":
    run_job(main, Args)
