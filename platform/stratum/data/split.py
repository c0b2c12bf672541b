"""Cuts one set of images into a training and a validation part."""

import hashlib
from collections.abc import Sequence

from stratum.data.records import Record


def split(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """About ``fraction`` of the images, at least one, for validation; both parts keep the order of the records.

    Images with and without instances are divided alike, and equal pictures stay together. Who goes where depends on the pictures and
    the seed alone, not on names or order. Fewer than two different pictures all go to the first part.
    """
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(record.picture, []).append(i)
    if len(groups) < 2:
        return list(records), []
    ordered = sorted(groups, key=lambda picture: hashlib.sha256(f"{seed}:{picture}".encode()).digest())
    filled = [p for p in ordered if any(records[i].labels for i in groups[p])]
    empty = [p for p in ordered if p not in set(filled)]
    count = min(max(round(len(ordered) * fraction), 1), len(ordered) - 1)
    from_filled = min(max(round(count * len(filled) / len(ordered)), min(1, len(filled))), len(filled), count)
    from_filled = max(from_filled, count - len(empty))
    chosen = {i for p in filled[:from_filled] + empty[: count - from_filled] for i in groups[p]}
    return [r for i, r in enumerate(records) if i not in chosen], [r for i, r in enumerate(records) if i in chosen]
