"""One URI of labelled images to a training and a validation set."""

from collections import Counter
from dataclasses import dataclass, field, replace

from stratum.data.class_table import class_table
from stratum.data.classes import ClassMap, parse_classes
from stratum.data.coco import coco_entries, read_coco, unlisted_images, used_categories
from stratum.data.fingerprint import fingerprint
from stratum.data.idmask import CATEGORY, doubtful_ids, mask_entries
from stratum.data.images import DepthRule
from stratum.data.layouts import find_layout
from stratum.data.parts import CocoPart, MaskPart, Part
from stratum.data.records import Entry, Problem, Record
from stratum.data.samples import SampleSet, from_masks, from_samples
from stratum.data.scan import measure_depth, scan
from stratum.data.semantic_source import Listing, class_problems, list_semantic, task_of
from stratum.data.split import fold_of, split
from stratum.data.tiles import cut
from stratum_models.errors import UserError
from stratum_models.interface import Task

SYNTHETIC = "synthetic://"
MIN_TILE = 32


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which data to use, and how."""

    uri: str  # a folder, a COCO JSON (local or s3://) or synthetic://ore?images=64&size=256&seed=0
    classes: str = ""  # such as roca+glomero=ore; empty: every category; for class masks the rest becomes the background
    task: str = ""  # instance or semantic; empty: what the files hold
    val_fraction: float = 0.2  # how much is held out where the data have no validation part of their own
    split_seed: int = 0
    folds: int = 0  # cross-validation: the images of all parts are dealt into so many; 0: none
    fold: int = 0  # which of them is held out, counted from 0
    tile: int = 0  # images are cut into tiles with sides of at most so many pixels, without overlap; 0: left whole
    skip_broken: bool = False  # go on without what is missing, broken or unknown

    def __post_init__(self) -> None:
        if not self.uri:
            raise UserError("no data were named; give a folder, a COCO JSON or synthetic://ore with --data")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"the validation fraction is {self.val_fraction}, it must be between 0 and 1")
        if self.split_seed < 0:
            raise UserError(f"the split seed is {self.split_seed}, it must be 0 or more")
        if self.task not in ("", "instance", "semantic"):
            raise UserError(f"the task {self.task!r} is not known; it is instance or semantic, or empty for what the files hold")
        if self.folds and (self.folds < 2 or not 0 <= self.fold < self.folds):
            raise UserError(f"fold {self.fold} of {self.folds} is no fold: folds must be 2 or more, fold from 0 to one less")
        if self.fold and not self.folds:
            raise UserError(f"fold is {self.fold}, but into how many folds the images are dealt is not said: give folds")
        if self.tile and self.tile < MIN_TILE:
            raise UserError(f"tiles of {self.tile} pixels are too small; give at least {MIN_TILE}, or 0 for whole images")
        parse_classes(self.classes)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled images ready for training."""

    train: SampleSet
    val: SampleSet
    classes: tuple[str, ...]
    task: Task
    depth: DepthRule | None  # how 16-bit images were scaled; None: there are none
    fingerprint: str
    problems: list[Problem]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All that was found at a URI: the usable images, and every problem."""

    train: list[Record]
    val: list[Record]
    classes: tuple[str, ...]
    problems: list[Problem]
    task: Task = "instance"
    depth: DepthRule | None = None
    dropped: Counter[str] = field(default_factory=Counter)  # annotations by category that the class selection left out

    @property
    def errors(self) -> list[Problem]:
        """What is missing, broken or unknown."""
        return [p for p in self.problems if p.severity == "error"]


def load_data(spec: DataSpec) -> Dataset:
    """Read and check a data set; images are decoded again only when a sample is asked for.

    Raises ``UserError`` where nothing usable is there, and where anything is missing, broken or unknown unless ``spec.skip_broken``.
    """
    survey = survey_data(spec)
    if survey.errors and not spec.skip_broken:
        more = f" (and {len(survey.errors) - 1} more)" if len(survey.errors) > 1 else ""
        first = survey.errors[0]
        raise UserError(
            f"{first.kind}: {first.uri}: {first.detail}{more}; "
            f"jobs/check_data.py --data {spec.uri} lists everything, --skip-broken goes on without it"
        )
    if not survey.train or not survey.val:
        raise UserError(
            f"{spec.uri} has {len(survey.train)} usable images for training and {len(survey.val)} for validation; each needs at least one"
        )
    return Dataset(
        train=SampleSet(survey.train, survey.depth),
        val=SampleSet(survey.val, survey.depth),
        classes=survey.classes,
        task=survey.task,
        depth=survey.depth,
        fingerprint=fingerprint(survey.train, survey.val, survey.classes, survey.depth),
        problems=survey.problems,
    )


def require_task(data: Dataset, wanted: Task, who: str, spec: DataSpec) -> None:
    """Refuses labels that are for another task than a model's; ``who`` names the model.

    Raises:
        UserError: says which task each is for, and what may be changed.
    """
    if data.task == wanted:
        return
    if spec.uri.startswith(SYNTHETIC):
        fix = "choose another scene"
    elif spec.task:
        fix = f"leave --task {spec.task} out, or choose another model"
    else:
        read = "class masks" if wanted == "semantic" else "instances"
        fix = f"choose another model, or give --task {wanted} where these labels can be read as {read}"
    raise UserError(f"{who} is for {wanted} segmentation, the labels of {spec.uri} are for {data.task} segmentation: {fix}")


def survey_data(spec: DataSpec) -> Survey:
    """Read every image and label of a data set. Raises ``UserError`` where there is none, or it cannot be made out."""
    if spec.uri.startswith(SYNTHETIC):
        return _synthetic(spec)
    parts = [part for part in find_layout(spec.uri) if part is not None]
    wanted = parse_classes(spec.classes)
    task = task_of(parts, spec.task)
    listing = list_semantic(parts, wanted) if task == "semantic" else _list_instances(parts, wanted)
    scanned = [scan(entries) for entries in listing.entries]
    problems = listing.problems + [problem for _, found in scanned for problem in found]
    if task == "instance" and not spec.task and any(isinstance(part, MaskPart) and part.kind == "folder" for part in parts):
        problems += doubtful_ids([record for records, _ in scanned for record in records], spec.uri)
    survey = Survey(train=[], val=[], classes=listing.classes, problems=problems, task=task, dropped=listing.dropped)
    return _divided([records for records, _ in scanned], survey, spec)


def _divided(sets: list[list[Record]], survey: Survey, spec: DataSpec) -> Survey:
    """The survey with its records in two parts and what only both together show; tiles are cut last, so none strays to the other part."""
    if spec.folds:
        train, val = fold_of([record for records in sets for record in records], spec.folds, spec.fold, spec.split_seed)
    else:
        train, val = sets if len(sets) == 2 else split(sets[0], spec.val_fraction, spec.split_seed)
    problems = survey.problems + _same_pictures(train, val) + _empty_classes(train, survey, spec.uri)
    if survey.task == "instance":
        problems += _empty_parts(train, val, spec.uri)
    depth = measure_depth(train)
    if spec.tile:
        train, val = cut(train, spec.tile), cut(val, spec.tile)
    return replace(survey, train=train, val=val, problems=problems, depth=depth)


def _list_instances(parts: list[Part], wanted: ClassMap) -> Listing:
    coco = {part: read_coco(part.tree.uri(part.file)) for part in parts if isinstance(part, CocoPart)}
    classes = wanted.resolve(used_categories(list(coco.values())) if coco else [CATEGORY])
    listed: list[list[Entry]] = []
    problems: list[Problem] = []
    dropped: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, CocoPart):
            entries, found, unwanted = coco_entries(coco[part], part, classes)
            dropped += unwanted
        elif isinstance(part, MaskPart):
            entries, found = mask_entries(part)
        else:
            raise TypeError(f"no instances are read from a {type(part).__name__}")
        listed.append(entries)
        problems += found
    named = [entry.uri for entries in listed for entry in entries] + [p.uri for p in problems if p.kind == "listed twice"]
    problems += unlisted_images(list(coco), named)
    return Listing(entries=listed, classes=classes.names, problems=problems, dropped=dropped)


def _same_pictures(train: list[Record], val: list[Record]) -> list[Problem]:
    """Equal pictures: across the splits they make validation look better than it is."""
    problems = []
    first: dict[str, tuple[str, Record]] = {}
    for name, records in (("train", train), ("val", val)):
        for record in records:
            split_name, other = first.setdefault(record.picture, (name, record))
            if other is record:
                continue
            kind = "same picture in train and val" if split_name != name else "same picture twice"
            problems.append(Problem(severity="warning", kind=kind, uri=record.uri, detail=f"equals {other.uri}"))
    return problems


def _empty_classes(train: list[Record], survey: Survey, uri: str) -> list[Problem]:
    if survey.task == "semantic":
        return class_problems(survey.classes, [record.pixel_counts for record in train], uri)
    found = {label for record in train for label in record.labels}
    missing = [name for label, name in enumerate(survey.classes) if label not in found]
    return [
        Problem(severity="warning", kind="empty class", uri=uri, detail=f"no instance of {name!r} in the training part") for name in missing
    ]


def _empty_parts(train: list[Record], val: list[Record], uri: str) -> list[Problem]:
    """An error for a part of negatives alone: they teach no shape, and accuracy on them is not a number."""
    split_off = "give another --split-seed, --val-fraction or --fold where it was split off"
    return [
        Problem(severity="error", kind="no instances", uri=uri, detail=f"none in the {name} part: label some of its images, or {split_off}")
        for name, records in (("training", train), ("validation", val))
        if records and all(all(record.crowd) for record in records)
    ]


def _synthetic(spec: DataSpec) -> Survey:
    from stratum.data.synthetic import load_synthetic
    from stratum.data.synthetic_masks import MaskSceneSet

    train, val, known = load_synthetic(spec.uri)
    task: Task = "semantic" if isinstance(train, MaskSceneSet) else "instance"
    if spec.task not in ("", task):
        raise UserError(f"{spec.uri} is for the task {task}, not {spec.task}; leave the task out or choose another scene")
    wanted = parse_classes(spec.classes)
    if task == "semantic":
        table = class_table(known, wanted)
        names, sets = table.names, [list(from_masks(samples, table).records) for samples in (train, val)]
    else:
        classes = wanted.resolve(known)
        labels = [classes.index(name) for name in known]
        names, sets = classes.names, [list(from_samples(samples, labels).records) for samples in (train, val)]
    if spec.folds or spec.tile:
        return _divided(sets, Survey(train=[], val=[], classes=names, problems=[], task=task), spec)
    return Survey(train=sets[0], val=sets[1], classes=names, problems=[], task=task)
