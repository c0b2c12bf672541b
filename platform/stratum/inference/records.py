"""A record of each image that is done, beside its results, so that a run that was cut short goes on where it was.

An image's record is written by the actor that predicted it, after its masks: what has a record is whole.
"""

from collections.abc import Sequence
from dataclasses import asdict

from stratum import storage
from stratum.inference.work import BatchSpec, Found, Work
from stratum.storage.parallel import in_parallel
from stratum_models.errors import UserError

FOLDER = "records"
RUN = "run.json"  # in the folder: what the run was asked for
_OWN = ("batch_size", "workers", "gpu", "cpus", "resume")  # fields that change no result


def record_uri(spec: BatchSpec, work: Work) -> str:
    """Where the record of an image lies."""
    return storage.join(spec.storage, FOLDER, f"{work.name}.json")


def keep_record(spec: BatchSpec, found: Found) -> None:
    """Store that an image is done; one that could not be read is tried again next time."""
    if not found.error:
        storage.write_bytes(record_uri(spec, found.work), found.to_json().encode())


def done_before(spec: BatchSpec, manifest_sha256: str, works: Sequence[Work]) -> list[Found]:
    """What an earlier run with the same options has done of ``works``; the first run of all notes its options.

    Raises:
        UserError: the earlier run had other options or another model.
    """
    asked = {**{name: value for name, value in asdict(spec).items() if name not in _OWN}, "manifest_sha256": manifest_sha256}
    uri = storage.join(spec.storage, FOLDER, RUN)
    if not storage.exists(uri):
        storage.write_json(uri, asked)
        return []
    earlier = storage.read_json(uri)
    changed = [name for name, value in asked.items() if not isinstance(earlier, dict) or earlier.get(name) != value]
    if changed:
        raise UserError(
            f"{spec.storage}: results of a run with another {', '.join(changed)} lie there: resume it as it was, or choose another"
        )
    there = {storage.relative(one, storage.join(spec.storage, FOLDER)) for one in storage.list_files(storage.join(spec.storage, FOLDER))}
    known = [work for work in works if f"{work.name}.json" in there]
    found = in_parallel(lambda work: _read(spec, work), known)
    return [one for one in found if one is not None]


def _read(spec: BatchSpec, work: Work) -> Found | None:
    """The record of an image, None where it is of another image or damaged."""
    try:
        found = Found.from_json(storage.read_once(record_uri(spec, work)).decode())
    except (ValueError, TypeError, KeyError):
        return None
    return found if found.work == work else None
