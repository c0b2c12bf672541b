"""Measure a model package on labelled images."""

import json
import math
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from stratum import storage
from stratum.cli import option_pairs, run_job
from stratum.data.flags import DataArgs
from stratum.data.images import DepthRule
from stratum.data.samples import SampleSet
from stratum.data.source import Dataset, load_data, require_task
from stratum.inference.assess import Assessment, assess
from stratum.inference.assess_masks import MaskAssessment, assess_masks
from stratum.inference.bands import BandRule, check_band
from stratum.inference.classes import window_of
from stratum.inference.options import with_options
from stratum.inference.work import check_window
from stratum.registry import fetch_package
from stratum.report.tables import INDEXES, index_table
from stratum.tracking import open_run
from stratum.training.run import report_problems
from stratum_models.catalog import preset
from stratum_models.errors import UserError
from stratum_models.package import LoadedModel, Manifest, load_package

SPLITS = ("val", "train", "all")


@dataclass(frozen=True, kw_only=True)
class Args(DataArgs, BandRule):
    """What to measure, on what, and where to write."""

    package: str
    """A folder, s3://..., models:/name@champion, models:/name/3 or runs:/id/package."""
    split: str = "val"
    """Which images: val, train or all."""
    skip_broken: bool = False
    """Go on without what is missing, broken or unknown."""
    storage: str = ""
    """Folder for metrics.json and the figures, local or s3://; empty: only print."""
    experiment: str = ""
    """Also log to an MLflow run of this experiment."""
    window: int | None = None
    """Class masks: predict larger images in windows of this side in pixels, overlapping and blended; 0: whole. By default the size of the
    tiles that the package was trained on, for two stages 2048."""
    set: tuple[str, ...] = ()
    """Options of the package's model for this measurement, such as count=0 for stage 1 of two stages alone."""
    gates: int | None = None
    """ARSM: draw the gate's maps for so many images, and count which resolution decides the pixels of each class."""
    batch_size: int = 4
    """Images predicted together."""
    pictures: int = 12
    """Images on the sheet of overlays."""
    gpu: bool = False
    """Predict on the first GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window or 0)
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: use one of {', '.join(SPLITS)}")
        if self.batch_size < 1 or self.pictures < 0 or (self.gates or 0) < 0:
            raise UserError(f"--batch-size {self.batch_size} --pictures {self.pictures} --gates {self.gates}: give at least 1, 0 and 0")
        if self.gpu and not torch.cuda.is_available():
            raise UserError("--gpu: this machine has no usable GPU: leave the flag out")


def main(args: Args) -> None:
    """Print how good a package is on labelled images, in the figures of its task.

    Instances: AP, precision and recall at the package's threshold, particle sizes against the truth. Classes: mean IoU, pixel accuracies,
    Dice, boundary F-score and areas over the whole set, and the height of the slag's band where --tube-class and --slag-class are among
    them. With --storage, also written: metrics.json; precision_recall.png and sizes.png, or confusion.png and iou.png; overlays.png (found
    beside labelled).
    """
    loaded = with_options(load_package(fetch_package(args.package)), option_pairs(args.set))
    _check_flags(loaded.manifest, args)
    data = _read(loaded.manifest, args)
    images = _chosen(data, loaded.manifest, args)
    report_problems(data, _say)
    _warn_of_training_images(data, loaded.manifest, args)
    with open_run(args.experiment, "evaluate", vars(args)) if args.experiment else nullcontext() as run:
        found = _assessed(loaded, images, args)
        Console(width=100).print(_table(found, args))
        row = {
            "name": loaded.manifest.preset,
            "metrics": {**loaded.manifest.cost, **found.metrics},
            "paper": preset(loaded.manifest.preset).paper,
        }
        print("\n" + index_table([row], INDEXES[loaded.manifest.task]), flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if args.storage or run is not None:
                found.draw(folder)
                (folder / "metrics.json").write_text(json.dumps(_record(found, args, loaded), indent=2, allow_nan=False) + "\n")
            if args.storage:
                storage.upload_tree(folder, args.storage)
                print(f"written: {storage.resolve(args.storage)}")
            if run is not None:
                run.log_metrics(found.metrics)
                for path in sorted(folder.iterdir()):
                    run.log_artifact(path, "evaluation")


def _assessed(loaded: LoadedModel, images: SampleSet, args: Args) -> Assessment | MaskAssessment:
    """The figures of the package's task."""
    device = "cuda" if args.gpu else "cpu"
    if loaded.manifest.task == "semantic":
        window = window_of(loaded.manifest, args.window)
        return assess_masks(
            loaded,
            images,
            device=device,
            batch_size=args.batch_size,
            window=window,
            pictures=args.pictures,
            gates=args.gates,
            band=args,
            say=_say,
        )
    return assess(loaded, images, device=device, batch_size=args.batch_size, mm_per_px=args.mm_per_px, pictures=args.pictures, say=_say)


def _check_flags(manifest: Manifest, args: Args) -> None:
    """Refuses flags that have no meaning for the package's task."""
    given: dict[str, object] = {"--window": args.window, "--gates": args.gates} if manifest.task == "instance" else {}
    if manifest.task == "semantic" and not args.knows_slag(manifest.classes):
        given["--mm-per-px"] = args.mm_per_px
    unfit = [name for name, value in given.items() if value is not None]
    if unfit:
        raise UserError(f"{', '.join(unfit)}: has no meaning for {args.package}, whose task is {manifest.task}: leave it out")
    check_band(args, manifest)


def _say(line: str) -> None:
    print(line, flush=True)


def _read(manifest: Manifest, args: Args) -> Dataset:
    """The data with the classes of the flags, or else of the package."""
    spec = args.data_spec(classes=",".join(manifest.classes), skip_broken=args.skip_broken)
    try:
        data = load_data(spec)
    except UserError as error:
        if args.classes or not str(error).startswith("--classes names"):
            raise
        raise UserError(
            f"{error}. These are the package's classes: if it was trained with --classes, such as roca+glomero=ore, give the same here"
        ) from error
    require_task(data, manifest.task, f"the package {args.package}", spec)
    return data


def _warn_of_training_images(data: Dataset, manifest: Manifest, args: Args) -> None:
    """Says where figures may be of images that the package was trained on: they look better than they are."""
    if data.fingerprint == manifest.data_fingerprint:
        if args.split != "val":
            _say("warning: the package was trained on images of this split: only --split val is a fair test")
    elif manifest.data_fingerprint:
        _say(
            "warning: these are not exactly the data and the split of the package's training; if it saw the same images, "
            "repeat its --classes, --tile, --folds, --fold, --val-fraction and --split-seed, or training images are among those measured"
        )


def _chosen(data: Dataset, manifest: Manifest, args: Args) -> SampleSet:
    """The images of the split, scaled by the package's rule; refused where the classes are not the package's."""
    if data.classes != manifest.classes:
        raise UserError(
            f"{args.data} gives the classes {', '.join(data.classes)}, the package knows {', '.join(manifest.classes)}: "
            "choose and rename them with --classes, in the package's order"
        )
    parts = {"val": [data.val], "train": [data.train], "all": [data.train, data.val]}[args.split]
    depth = DepthRule(**manifest.depth_rule) if manifest.depth_rule else None
    return SampleSet([record for part in parts for record in part.records], depth)


def _record(found: Assessment | MaskAssessment, args: Args, loaded: LoadedModel) -> dict[str, Any]:
    return {
        "package": args.package,
        "preset": loaded.manifest.preset,
        "weights_sha256": loaded.manifest.weights_sha256,
        "data": args.data,
        "split": args.split,
        **{name: getattr(args, name) for name in ("val_fraction", "split_seed", "folds", "fold", "tile")},
        **{field.name: getattr(args, field.name) for field in fields(BandRule)},
        "options": option_pairs(args.set),
        "window": window_of(loaded.manifest, args.window) if loaded.manifest.task == "semantic" else 0,
        "images": found.images,
        "metrics": {name: value if math.isfinite(value) else None for name, value in found.metrics.items()},
        **found.record(),
    }


def _table(found: Assessment | MaskAssessment, args: Args) -> Table:
    table = Table(title=f"{args.package} on {found.title} of {args.data} ({args.split})")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("truth", justify="right")
    for name, value in found.metrics.items():
        table.add_row(name, f"{value:.4f}" if math.isfinite(value) else "-", "")
    for row in found.rows():
        table.add_row(*row)
    return table


if __name__ == "__main__":
    run_job(main, Args)
