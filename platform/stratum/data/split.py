"""Cuts one set of images into a training and a validation part."""

import hashlib
from collections.abc import Sequence

from stratum.data.records import Record
from stratum_models.errors import UserError


def split(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """About ``fraction`` of the images, at least one, for validation; both parts keep the order of the records.

    Images with and without instances (or a second class) are divided alike, where there are two with some each part has one, and
    equal pictures stay together. Who goes where depends on
    the pictures and the seed alone, not on names or order. Fewer than two different pictures all go to the first part.
    """
    groups = _by_picture(records)
    if len(groups) < 2:
        return list(records), []
    ordered, filled, empty = _shuffled(records, groups, seed)
    count = min(max(round(len(ordered) * fraction), 1), len(ordered) - 1)
    from_filled = min(max(round(count * len(filled) / len(ordered)), min(1, len(filled))), max(len(filled) - 1, 1), count)
    from_filled = max(from_filled, count - len(empty))
    chosen = {i for p in filled[:from_filled] + empty[: count - from_filled] for i in groups[p]}
    return _parted(records, chosen)


def fold_of(records: Sequence[Record], folds: int, fold: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Cross-validation: the images outside a fold for training and those of the fold for validation, in the order of the records.

    Images are dealt into ``folds`` in turn, first those with something to find, so that folds differ by one picture at most and are alike
    in what they hold. Equal pictures stay together; who goes where depends on the pictures and the seed alone. Raises ``UserError`` where
    there are fewer different pictures than folds.
    """
    groups = _by_picture(records)
    if len(groups) < folds:
        raise UserError(f"{len(groups)} different images cannot be dealt into {folds} folds; give fewer folds")
    _, filled, empty = _shuffled(records, groups, seed)
    return _parted(records, {i for p in (filled + empty)[fold::folds] for i in groups[p]})


def _by_picture(records: Sequence[Record]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(record.picture, []).append(i)
    return groups


def _shuffled(records: Sequence[Record], groups: dict[str, list[int]], seed: int) -> tuple[list[str], list[str], list[str]]:
    """The pictures in an order that the seed gives: all, those with something to find, and those without."""
    ordered = sorted(groups, key=lambda picture: hashlib.sha256(f"{seed}:{picture}".encode()).digest())
    filled = [p for p in ordered if any(records[i].positive for i in groups[p])]
    return ordered, filled, [p for p in ordered if p not in set(filled)]


def _parted(records: Sequence[Record], chosen: set[int]) -> tuple[list[Record], list[Record]]:
    return [r for i, r in enumerate(records) if i not in chosen], [r for i, r in enumerate(records) if i in chosen]
