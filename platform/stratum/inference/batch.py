"""Many images to masks, annotations and measurements, on Ray Data.

Each image is read once, by the actor that predicts it, which also writes what belongs to this image alone; the driver gathers what
belongs to all of them: annotations, measurements, and what could not be read. Large files are work for an actor of their own, with as many
threads as there are CPUs for it.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stratum import storage
from stratum.cluster import forwarded_environment, ray_is_local
from stratum.data.images import IMAGE_SUFFIXES, DepthRule, decode_image
from stratum.data.scans import TIFF, ZARR, is_scan, list_scans
from stratum.data.synthetic import draw_sample, load_synthetic, parse_uri
from stratum.inference.classes import together
from stratum.inference.instances import InstanceWriter
from stratum.inference.masks import MaskWriter
from stratum.inference.options import with_options
from stratum.inference.outputs import output_names
from stratum.inference.records import done_before, keep_record
from stratum.inference.scan_masks import ScanWriter
from stratum.inference.work import BatchSpec, Found, Work
from stratum.storage.parallel import in_parallel
from stratum.training.progress import Say, duration, say_nothing
from stratum_models.errors import UserError
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import MANIFEST_FILE, WEIGHTS_FILE, load_package, manifest_sha256

SAY_SECONDS = 5.0
LARGE = 2**24  # bytes of a TIFF that is read by an actor of its own; whether it is read by windows, its size in pixels says
NICENESS = 5  # of actors that have no CPUs of their own


class Predictor:
    """The actor: holds the model, takes rows with the JSON of a :class:`Work`, answers with the JSON of a :class:`Found`."""

    def __init__(self, package: Sequence[Any], spec: BatchSpec, say: Say = say_nothing) -> None:
        """``package`` holds one Ray reference to the content of the package's files: no worker needs the registry or the driver's disk.

        ``say`` hears how far a scan is.
        """
        import ray

        if not (spec.cpus or spec.gpu):
            os.nice(NICENESS)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in ray.get(package[0]).items():
                (Path(folder) / name).write_bytes(data)
            loaded = with_options(load_package(Path(folder)), spec.options)
        manifest = loaded.manifest
        self._spec, self._say = spec, say
        self._depth = DepthRule(**manifest.depth_rule) if manifest.depth_rule else None
        self._model = prepare_for_inference(loaded.model).to("cuda" if spec.gpu else "cpu")
        self._writer = InstanceWriter(spec, manifest) if manifest.task == "instance" else MaskWriter(spec, manifest)
        self._scans = ScanWriter(spec, manifest, self._depth) if manifest.task == "semantic" else None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Predict a batch."""
        found = self.predict([Work(**json.loads(text)) for text in rows["work"]])
        return {"found": np.array([one.to_json() for one in found], dtype=object)}

    def predict(self, works: Sequence[Work]) -> list[Found]:
        """What is in each of the images; those that cannot be read are named, not raised."""
        found: list[Found] = []
        for images in together(self._readable(works, found), lambda one: one[1][0].numel()):
            found += self._writer.find(self._model, [work for work, _ in images], [image for _, image in images])
        if self._spec.resume:
            for one in found:
                keep_record(self._spec, one)
        return sorted(found, key=lambda one: one.work.index)

    def _readable(self, works: Sequence[Work], found: list[Found]) -> Iterator[tuple[Work, Tensor]]:
        """The images that can be read whole, one by one; what becomes of the others goes into ``found``."""
        for work in works:
            try:
                if self._scans and is_scan(work.uri):
                    found.append(self._scans.find(self._model, work, self._say))
                    continue
                image = read(work.uri, self._depth)
            except UserError as error:
                found.append(Found(work=work, error=str(error)))
                continue
            yield work, image


def list_work(spec: BatchSpec) -> list[Work]:
    """The images to predict, in order. Raises UserError where there are none. Results of an earlier run are not taken for images."""
    if storage.is_synthetic(spec.data):
        uris = [uri for images in load_synthetic(spec.data)[:2] for uri in images.uris]
        return [Work(index=index, uri=uri, name=f"{index:06d}") for index, uri in enumerate(uris)]
    data, results = storage.resolve(spec.data), storage.resolve(spec.storage)
    if storage.suffix(data) in (*IMAGE_SUFFIXES, ZARR) and storage.exists(data):
        return [Work(index=0, uri=data, name=storage.name(data).rsplit(".", 1)[0])]
    own = [storage.join(results, name) + "/" for name in ("masks", "overlays", "gates")]
    own += [storage.join(results, name) for name in ("sizes.png", "areas.png", "legend.png")]
    files = [uri for uri in storage.list_files(data) if not uri.startswith(tuple(own))]
    scans = list_scans(files)
    uris = sorted([*scans, *(uri for uri in files if storage.suffix(uri) in IMAGE_SUFFIXES and f"{ZARR}/" not in uri)])
    if not uris:
        raise UserError(f"{data}: no images there: name a folder with files that end in {', '.join((*IMAGE_SUFFIXES, ZARR))}")
    names = output_names([storage.relative(uri, data) for uri in uris])
    return [Work(index=index, uri=uri, name=names[storage.relative(uri, data)]) for index, uri in enumerate(uris)]


def check_cluster(spec: BatchSpec) -> None:
    """Refuses actors that a Ray of this machine's own can never start; a cluster may grow. Raises UserError."""
    import ray

    if spec.gpu and ray_is_local() and not ray.cluster_resources().get("GPU"):  # type: ignore[no-untyped-call]
        raise UserError("--gpu: this machine has no usable GPU: leave the flag out, or set RAY_ADDRESS to a cluster that has one")


def predict_all(
    package: Path, spec: BatchSpec, works: Sequence[Work], say: Say = say_nothing, each: Callable[[Found], None] | None = None
) -> list[Found]:
    """Predict all images with actors on a connected Ray, and say how it goes; the answers in the order of the images.

    ``each`` hears of every image as it is done, those of an earlier run first.

    Raises:
        UserError: an earlier run that is to be resumed was another.
    """
    found = done_before(spec, manifest_sha256(package), works) if spec.resume else []
    before = len(found)
    if each is not None:
        for one in found:
            each(one)
    if before:
        say(f"{before}/{len(works)} images were done before")
    done = {one.work.index for one in found}
    start = spoke = time.monotonic()
    for one in _stream(package, spec, [work for work in works if work.index not in done], say):
        if len(found) == before:
            start = spoke = time.monotonic()  # starting the actors says nothing about the time left
        found.append(one)
        if each is not None:
            each(one)
        if one.error:
            say(f"broken: {one.error}")
        elif one.patches is not None:
            say(f"{one.work.name}: {one.note}")
        now = time.monotonic()
        if now - spoke >= SAY_SECONDS or len(found) == len(works):
            spoke = now
            say(f"{len(found)}/{len(works)} images{_pace(len(found) - before, len(works) - before, now - start)}")
    return sorted(found, key=lambda one: one.work.index)


def _pace(done: int, total: int, seconds: float) -> str:
    """Speed and time left, counted from the first image on; nothing while there is only that one."""
    if done < 2 or seconds <= 0:
        return ""
    speed = (done - 1) / seconds
    return f"  {speed:.1f} images/s  {duration((total - done) / speed)} left"


def read(uri: str, depth: DepthRule | None) -> Tensor:
    """One image ``uint8 [3, H, W]``, from storage or drawn."""
    if not storage.is_synthetic(uri):
        return decode_image(storage.read_once(uri), depth, uri)
    base, _, number = uri.partition("#")
    return draw_sample(parse_uri(base), int(number))[0].image


def readable(works: Iterable[Work], depth: DepthRule | None) -> Iterator[tuple[str, Tensor]]:
    """The images that can be read whole, one by one, with their URIs."""
    for work in works:
        try:
            yield work.uri, read(work.uri, depth)
        except UserError:  # prediction says what is the matter with it
            continue


def is_large(uri: str) -> bool:
    """Whether an image may be a scan, as far as its name and its bytes say: nothing is fetched or opened."""
    if storage.is_synthetic(uri):
        return False
    try:
        return storage.suffix(uri) == ZARR or (storage.suffix(uri) in TIFF and storage.size(uri) >= LARGE)
    except storage.StorageError:  # whoever reads it says what is the matter
        return False


def cpus_for(actors: int, nodes: Sequence[float]) -> int:
    """How many CPUs each of some actors can have on machines with so many; 1 where they are too few for all."""
    most = int(max(nodes, default=1))
    return next((cpus for cpus in range(most, 1, -1) if sum(int(node) // cpus for node in nodes) >= actors), 1)


def _stream(package: Path, spec: BatchSpec, works: Sequence[Work], say: Say) -> Iterator[Found]:
    """Images in batches with one CPU an actor, then large files one by one."""
    from stratum.training.relay import relayed  # here: it imports Ray

    large = [work for work, is_one in zip(works, in_parallel(is_large, [work.uri for work in works]), strict=True) if is_one]
    chosen = {work.index for work in large}
    free = _free_nodes()
    yield from _answers(package, spec, [work for work in works if work.index not in chosen], spec.batch_size, cpus=1)
    if large:
        with relayed(say) as relay:
            yield from _answers(package, spec, large, 1, cpus=cpus_for(min(spec.workers or len(large), len(large)), free), say=relay.say)


def _free_nodes() -> list[float]:
    """The CPUs of each machine; none where others are at work too, and it is not known where."""
    import ray

    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    return nodes if free >= sum(nodes) else []


def _answers(
    package: Path, spec: BatchSpec, works: Sequence[Work], batch_size: int, *, cpus: int, say: Say = say_nothing
) -> Iterator[Found]:
    import ray
    import ray.data

    if not works:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # else it says that its progress bars are off
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    batches = -(-len(works) // batch_size)
    available = int(ray.cluster_resources().get("GPU" if spec.gpu else "CPU", 1))  # type: ignore[no-untyped-call]
    actors = max(1, min(spec.workers or available // (1 if spec.gpu else cpus), batches))
    files = ray.put({name: (package / name).read_bytes() for name in (MANIFEST_FILE, WEIGHTS_FILE)})
    rows = ray.data.from_items([{"work": json.dumps(asdict(work))} for work in works], override_num_blocks=min(batches, 20 * actors))
    answers = rows.map_batches(
        Predictor,
        fn_constructor_args=([files], spec, say),  # in a list, since Ray warns of an actor whose argument itself is in the object store
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=0 if spec.gpu else spec.cpus * cpus,
        num_gpus=1 if spec.gpu else 0,
        runtime_env={"env_vars": forwarded_environment()},  # where Ray was connected before the keys of S3 were set, as in a notebook
    )
    for row in answers.iter_rows():
        yield Found.from_json(row["found"])
