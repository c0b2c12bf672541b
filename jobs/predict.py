"""Find the particles, or the classes, in a folder or bucket of images."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from stratum import storage
from stratum.cli import option_pairs, run_job
from stratum.cluster import ray_cluster
from stratum.data.images import DepthRule
from stratum.inference.bands import BandRule, check_band
from stratum.inference.batch import check_cluster, list_work, predict_all, readable
from stratum.inference.classes import window_of
from stratum.inference.gates import study_gates
from stratum.inference.instances import InstanceResults
from stratum.inference.masks import MaskResults
from stratum.inference.options import with_options
from stratum.inference.work import BatchSpec, MaskFormat
from stratum.registry import fetch_package
from stratum.shared import check_shared
from stratum.tracking import open_run
from stratum_models.errors import UserError
from stratum_models.package import Manifest, load_package


@dataclass(frozen=True, kw_only=True)
class Args(BandRule):
    """What to predict with, on what, and where to write."""

    package: str
    """A folder, s3://..., models:/name@champion, models:/name/3 or runs:/id/package."""
    data: str
    """A folder or bucket of images (or one image), local or s3://, or synthetic://ore?images=64&size=256&seed=0."""
    storage: str
    """Folder for the results, local or s3://."""
    score_threshold: float | None = None
    """Instances from this score up; by default the threshold that validation chose, which the package has."""
    window: int | None = None
    """Class masks: predict larger images in windows of this side in pixels, overlapping and blended; 0: whole. By default the size of the
    tiles that the package was trained on. Choose what it saw in training. Two stages: by default 2048, with patches that are picked of the
    whole image. Images too large to be read whole have windows even with 0: of 1024 pixels, for two stages 2048; packages that scale whole
    images to one size need to be told."""
    mask_format: MaskFormat = "tiff"
    """Class masks of images too large to be read whole (TIFF files of more than 89 million pixels, zarr arrays): tiled TIFF or zarr."""
    set: tuple[str, ...] = ()
    """Options of the package's model for this prediction, such as pick=share share=0.1 for two stages."""
    gates: int | None = None
    """ARSM: also draw the gate's maps of the first so many images, and count which resolution decides the pixels of each class in them."""
    overlays: bool = True
    """Also write pictures with what was found drawn over."""
    batch_size: int = 4
    """Images predicted together."""
    workers: int = 0
    """Actors of Ray; 0: as many as the cluster has CPUs, or GPUs with --gpu."""
    gpu: bool = False
    """Predict on GPUs, one for each actor."""
    resume: bool = False
    """Keep a record of each image, and skip those that an earlier run with this flag has done."""
    experiment: str = ""
    """Also log counts and sizes to an MLflow run of this experiment."""


def main(args: Args) -> int:
    """Write masks, overlays and measurements of every image, whatever the package's task.

    Instances: masks (16-bit PNG, one id for each), predictions.json (COCO), measurements.csv (particles) and sizes.json. Classes: masks
    (8-bit PNG of class indices), measurements.csv (areas), areas.json, legend.png, and slag.csv where --tube-class and --slag-class are
    among them. With --gates also gates/: the ARSM paper's figures 7 and 8 of each image, and for each class the share that each resolution
    decides.
    Images too large to be read whole are read by windows, and their masks written by tiles (TIFF or zarr), with bounded memory.
    Exit code 1 where an image could not be read: each is named, and the others are done.
    """
    package = fetch_package(args.package)
    loaded = load_package(package)  # a damaged package ends here, not in the workers
    loaded = with_options(loaded, option_pairs(args.set))
    manifest = loaded.manifest
    spec = _spec(args, manifest)
    works = list_work(spec)
    depth = DepthRule(**manifest.depth_rule) if manifest.depth_rule else None
    gates = study_gates(loaded, readable(works, depth), args.gates, spec.window) if args.gates is not None else None
    with ExitStack() as stack:
        with ray_cluster():
            check_cluster(spec)  # before the run is opened: bad input leaves none
            check_shared(spec.storage)
            run = stack.enter_context(open_run(args.experiment, "predict", vars(args))) if args.experiment else None
            found = predict_all(package, spec, works, say=lambda line: print(line, flush=True))
        results = (InstanceResults if manifest.task == "instance" else MaskResults)(found, manifest, spec)
        with tempfile.TemporaryDirectory() as scratch:
            results.write(Path(scratch))
            if gates:
                gates.write(Path(scratch))
            storage.upload_tree(Path(scratch), spec.storage)
            if run is not None:
                run.log_metrics(results.metrics())
                for name in (*results.artifacts, *(gates.artifacts if gates else ())):
                    run.log_artifact(Path(scratch) / name)
    Console(width=100).print(results.table())
    print(f"written: {spec.storage}")
    return 1 if results.record["broken"] else 0


def _spec(args: Args, manifest: Manifest) -> BatchSpec:
    """What is predicted and how; flags that do not fit the package's task are refused."""
    given = {"--score-threshold": args.score_threshold} if manifest.task == "semantic" else {"--window": args.window, "--gates": args.gates}
    unfit = [name for name, value in given.items() if value is not None]
    if unfit:
        raise UserError(f"{', '.join(unfit)}: has no meaning for {args.package}, whose task is {manifest.task}: leave it out")
    check_band(args, manifest)
    return BatchSpec(
        data=args.data,
        storage=storage.resolve(args.storage),
        score_threshold=manifest.score_threshold if args.score_threshold is None else args.score_threshold,
        **{field.name: getattr(args, field.name) for field in fields(BandRule)},
        window=window_of(manifest, args.window),
        mask_format=args.mask_format,
        options=option_pairs(args.set),
        overlays=args.overlays,
        batch_size=args.batch_size,
        workers=args.workers,
        gpu=args.gpu,
        resume=args.resume,
    )


if __name__ == "__main__":
    run_job(main, Args)
