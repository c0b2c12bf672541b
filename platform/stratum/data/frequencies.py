"""How often each class occurs, and the weights that even that out in a loss.

Shapes: ``K`` classes.
"""

from collections.abc import Sequence
from statistics import median

from stratum.data.records import Record
from stratum_models.errors import UserError

RULES = ("inverse", "median")


def pixel_totals(records: Sequence[Record], classes: int) -> tuple[int, ...]:
    """The labelled pixels of each class over all images; ignored pixels count nowhere."""
    return tuple(sum(record.pixel_counts[label] for record in records) for label in range(classes))


def class_weights(records: Sequence[Record], classes: int, rule: str = "median") -> tuple[float, ...]:
    """A weight for each class, ``K`` numbers; 0 for a class without any pixel, which no loss will ever see.

    ``inverse``: all labelled pixels over ``n`` times those of the class, ``n`` the classes that occur: so weighted, all classes have the
    same share. ``median``: the median frequency over the class's own, where a class's frequency is its share in the images that show it
    (Eigen and Fergus 2015): gentler where a class is rare only because few images show it.

    Raises ``UserError`` for an unknown rule, for records without class masks, and where nothing is labelled.
    """
    if rule not in RULES:
        raise UserError(f"the class weights {rule!r} are not known; known are {', '.join(RULES)}")
    if any(record.mask is None for record in records):
        raise UserError("class weights are counted in class masks, and these data hold instances")
    totals = pixel_totals(records, classes)
    if not any(totals):
        raise UserError("no pixel of the training part is labelled, so there are no class weights")
    return _inverse(totals) if rule == "inverse" else _median(records, totals)


def _inverse(totals: Sequence[int]) -> tuple[float, ...]:
    everything, present = sum(totals), sum(total > 0 for total in totals)
    return tuple(everything / (present * total) if total else 0.0 for total in totals)


def _median(records: Sequence[Record], totals: Sequence[int]) -> tuple[float, ...]:
    shown = [sum(sum(r.pixel_counts) for r in records if r.pixel_counts[label]) for label in range(len(totals))]
    frequencies = [total / pixels if pixels else 0.0 for total, pixels in zip(totals, shown, strict=True)]
    middle = median(f for f in frequencies if f)
    return tuple(middle / f if f else 0.0 for f in frequencies)
