"""Find the particles in a folder or bucket of images."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stratum import storage
from stratum.cli import run_job
from stratum.cluster import ray_cluster
from stratum.inference.batch import BatchSpec, Found, check_cluster, list_work, predict_all
from stratum.inference.outputs import coco_document
from stratum.measurements import fit_rosin_rammler, histogram, particles_csv, size_distribution
from stratum.registry import fetch_package
from stratum.report.plots import size_plot
from stratum.tracking import open_run
from stratum_models.errors import UserError
from stratum_models.package import Manifest, load_package


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to predict with, on what, and where to write."""

    package: str
    """A folder, s3://..., models:/name@champion, models:/name/3 or runs:/id/package."""
    data: str
    """A folder or bucket of images (or one image), local or s3://, or synthetic://ore?images=64&size=256&seed=0."""
    storage: str
    """Folder for the results, local or s3://."""
    mm_per_px: float | None = None
    """Millimetres per pixel; sizes are in pixels without it."""
    score_threshold: float | None = None
    """Instances from this score up; by default the threshold that validation chose, which the package has."""
    overlays: bool = True
    """Also write pictures with the instances drawn over."""
    batch_size: int = 4
    """Images predicted together."""
    workers: int = 0
    """Actors of Ray; 0: as many as the cluster has CPUs, or GPUs with --gpu."""
    gpu: bool = False
    """Predict on GPUs, one for each actor."""
    experiment: str = ""
    """Also log counts and sizes to an MLflow run of this experiment."""


def main(args: Args) -> int:
    """Write masks (16-bit PNG, one id for each instance), overlays, predictions.json (COCO), measurements.csv and sizes.json.

    Exit code 1 where an image could not be read: each is named, and the others are done.
    """
    package = fetch_package(args.package)
    manifest = load_package(package).manifest  # a damaged package ends here, not in the workers
    if manifest.task != "instance":
        raise UserError(f"{args.package} is for {manifest.task} segmentation: use a package whose task is instance")
    spec = BatchSpec(
        data=args.data,
        storage=storage.resolve(args.storage),
        score_threshold=manifest.score_threshold if args.score_threshold is None else args.score_threshold,
        mm_per_px=args.mm_per_px,
        overlays=args.overlays,
        batch_size=args.batch_size,
        workers=args.workers,
        gpu=args.gpu,
    )
    works = list_work(spec)
    with ExitStack() as stack:
        with ray_cluster():
            check_cluster(spec)  # before the run is opened: bad input leaves none
            run = stack.enter_context(open_run(args.experiment, "predict", vars(args))) if args.experiment else None
            found = predict_all(package, spec, works, say=lambda line: print(line, flush=True))
        record = _summary(found, manifest, spec)
        with tempfile.TemporaryDirectory() as scratch:
            _write(found, manifest, record, Path(scratch))
            storage.upload_tree(Path(scratch), spec.storage)
            if run is not None:
                run.log_metrics({f"predict/{key}": float(record[key]) for key in ("images", "broken", "instances")})
                run.log_artifact(Path(scratch) / "sizes.json")
                run.log_artifact(Path(scratch) / "sizes.png")
    Console(width=100).print(_table(record))
    print(f"written: {spec.storage}")
    return 1 if record["broken"] else 0


def _summary(found: Sequence[Found], manifest: Manifest, spec: BatchSpec) -> dict[str, Any]:
    sizes = size_distribution([particle for one in found for particle in one.particles])
    law = fit_rosin_rammler(sizes)
    broken = [one for one in found if one.error]
    return {
        "images": len(found) - len(broken),
        "broken": len(broken),
        "instances": sum(len(one.annotations) for one in found),
        "score_threshold": spec.score_threshold,
        "mm_per_px": spec.mm_per_px,
        "weights_sha256": manifest.weights_sha256,
        "sizes": sizes.summary(),
        "rosin_rammler": asdict(law) if law else None,
        "histogram": asdict(histogram(sizes)) if len(sizes) else None,
        "broken_images": {one.work.uri: one.error for one in broken},
    }


def _write(found: Sequence[Found], manifest: Manifest, record: dict[str, Any], folder: Path) -> None:
    images = [
        {"file_name": one.work.uri, "height": one.height, "width": one.width, "annotations": one.annotations}
        for one in found
        if not one.error
    ]
    particles = [particle for one in found for particle in one.particles]
    (folder / "predictions.json").write_text(json.dumps(coco_document(images, manifest.classes)) + "\n")
    (folder / "measurements.csv").write_text(particles_csv(particles))
    (folder / "sizes.json").write_text(json.dumps(record, indent=2) + "\n")
    size_plot(size_distribution(particles), None, folder / "sizes.png")


def _table(record: dict[str, Any]) -> Table:
    table = Table(title=f"{record['instances']} instances in {record['images']} images, {record['broken']} images broken")
    table.add_column("size by volume")
    table.add_column(record["sizes"]["unit"], justify="right")
    for level in ("d10", "d50", "d80", "d90"):
        value = record["sizes"][level]
        table.add_row(level.upper(), f"{value:.2f}" if value is not None else "-")
    law = record["rosin_rammler"]
    if law is not None:
        table.add_row(f"Rosin-Rammler x63.2 (n {law['n']:.2f}, R² {law['r_squared']:.3f})", f"{law['x632']:.2f}")
    return table


if __name__ == "__main__":
    run_job(main, Args)
