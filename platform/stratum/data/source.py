"""One URI of labelled images to a training and a validation set."""

from collections import Counter
from dataclasses import dataclass, field

from stratum.data.classes import parse_classes
from stratum.data.coco import coco_entries, read_coco, unlisted_images, used_categories
from stratum.data.fingerprint import fingerprint
from stratum.data.idmask import CATEGORY, mask_entries
from stratum.data.images import DepthRule
from stratum.data.layouts import CocoPart, MaskPart, Part, find_layout
from stratum.data.records import Entry, Problem, Record
from stratum.data.samples import SampleSet, from_samples
from stratum.data.scan import measure_depth, scan
from stratum.data.split import split
from stratum_models.errors import UserError
from stratum_models.interface import Task

SYNTHETIC = "synthetic://"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which data to use, and how."""

    uri: str  # a folder, a COCO JSON (local or s3://) or synthetic://ore?images=64&size=256&seed=0
    classes: str = ""  # such as roca+glomero=ore; empty: every category
    val_fraction: float = 0.2  # how much is held out where the data have no validation part of their own
    split_seed: int = 0
    skip_broken: bool = False  # go on without what is missing, broken or unknown

    def __post_init__(self) -> None:
        if not self.uri:
            raise UserError("no data were named; give a folder, a COCO JSON or synthetic://ore with --data")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"the validation fraction is {self.val_fraction}, it must be between 0 and 1")
        if self.split_seed < 0:
            raise UserError(f"the split seed is {self.split_seed}, it must be 0 or more")
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
        task="instance",
        depth=survey.depth,
        fingerprint=fingerprint(survey.train, survey.val, survey.classes, survey.depth),
        problems=survey.problems,
    )


def survey_data(spec: DataSpec) -> Survey:
    """Read every image and label of a data set. Raises ``UserError`` where there is none, or it cannot be made out."""
    if spec.uri.startswith(SYNTHETIC):
        return _synthetic(spec)
    parts = [part for part in find_layout(spec.uri) if part is not None]
    listed, problems, classes, dropped = _list_entries(parts, spec)
    scanned = [scan(entries) for entries in listed]
    problems += [problem for _, found in scanned for problem in found]
    sets = [records for records, _ in scanned]
    train, val = sets if len(sets) == 2 else split(sets[0], spec.val_fraction, spec.split_seed)
    problems += _same_pictures(train, val) + _empty_classes(train, classes, spec.uri)
    return Survey(train=train, val=val, classes=classes, problems=problems, depth=measure_depth(train), dropped=dropped)


def _list_entries(parts: list[Part], spec: DataSpec) -> tuple[list[list[Entry]], list[Problem], tuple[str, ...], Counter[str]]:
    wanted = parse_classes(spec.classes)
    coco = {part: read_coco(part.tree.uri(part.file)) for part in parts if isinstance(part, CocoPart)}
    classes = wanted.resolve(used_categories(list(coco.values())) if coco else [CATEGORY])
    listed: list[list[Entry]] = []
    problems: list[Problem] = []
    dropped: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, MaskPart):
            entries, found = mask_entries(part)
        else:
            entries, found, unwanted = coco_entries(coco[part], part, classes)
            dropped += unwanted
        listed.append(entries)
        problems += found
    named = [entry.uri for entries in listed for entry in entries] + [p.uri for p in problems if p.kind == "listed twice"]
    problems += unlisted_images(list(coco), named)
    return listed, problems, classes.names, dropped


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


def _empty_classes(train: list[Record], classes: tuple[str, ...], uri: str) -> list[Problem]:
    found = {label for record in train for label in record.labels}
    missing = [name for label, name in enumerate(classes) if label not in found]
    return [
        Problem(severity="warning", kind="empty class", uri=uri, detail=f"no instance of {name!r} in the training part") for name in missing
    ]


def _synthetic(spec: DataSpec) -> Survey:
    from stratum.data.synthetic import load_synthetic

    train, val, known = load_synthetic(spec.uri)
    classes = parse_classes(spec.classes).resolve(known)
    labels = [classes.index(name) for name in known]
    sets = [list(from_samples(samples, labels).records) for samples in (train, val)]
    return Survey(train=sets[0], val=sets[1], classes=classes.names, problems=[])
