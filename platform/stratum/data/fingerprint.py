"""One hash for what a model was trained and validated on."""

import hashlib
from collections.abc import Sequence

from stratum.data.classmask import unpack
from stratum.data.images import DepthRule
from stratum.data.records import Record


def fingerprint(train: Sequence[Record], val: Sequence[Record], classes: Sequence[str], depth: DepthRule | None) -> str:
    """SHA-256 over the files' contents and the labels as used, by split: equal for a copy elsewhere, whatever its order and names."""
    total = hashlib.sha256(repr((tuple(classes), depth)).encode())
    for name, records in (("train", train), ("val", val)):
        total.update(name.encode())
        for line in sorted(_line(r) for r in records):
            total.update(line)
    return total.hexdigest()


def _line(record: Record) -> bytes:
    content = hashlib.sha256(repr((record.digest, record.rotate, record.size)).encode())
    for annotation in sorted(repr(item) for item in zip(record.labels, (r["counts"] for r in record.rles), record.crowd, strict=True)):
        content.update(annotation.encode())
    if record.mask is not None:  # packed bytes may differ between versions of zlib
        content.update(unpack(record.mask, record.size).tobytes())
    if record.window is not None:
        content.update(repr(record.window).encode())
    return content.digest()
