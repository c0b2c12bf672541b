"""Records of images that are done: a run that was cut short goes on, and another run is not taken for it."""

from dataclasses import replace
from pathlib import Path

import pytest

from stratum.inference.records import done_before, keep_record, record_uri
from stratum.inference.work import BatchSpec, Found, Work
from stratum_models.errors import UserError

WORKS = [Work(index=index, uri=f"s3://bucket/{index}.png", name=f"part/{index}") for index in range(4)]


@pytest.fixture
def spec(tmp_path: Path) -> BatchSpec:
    return BatchSpec(data="s3://bucket", storage=str(tmp_path / "out"), resume=True)


def test_what_has_a_record_is_done(spec: BatchSpec) -> None:
    assert done_before(spec, "abc", WORKS) == []
    found = [Found(work=work, height=3, width=4) for work in WORKS[:2]]
    for one in found:
        keep_record(spec, one)
    keep_record(spec, Found(work=WORKS[2], error="cannot be read"))  # and is tried again
    assert done_before(spec, "abc", WORKS) == found
    assert done_before(replace(spec, batch_size=9, workers=3), "abc", WORKS) == found


def test_damaged_records_and_those_of_other_images_do_not_count(spec: BatchSpec) -> None:
    done_before(spec, "abc", WORKS)
    for work in WORKS[:2]:
        keep_record(spec, Found(work=work))
    Path(record_uri(spec, WORKS[0])).write_text("{")
    moved = [replace(WORKS[1], uri="s3://bucket/other.png"), WORKS[0]]
    assert done_before(spec, "abc", moved) == []


@pytest.mark.parametrize("change", [{"score_threshold": 0.5}, {"mm_per_px": 2.0}, {"data": "s3://other"}, {"overlays": False}])
def test_another_run_is_not_resumed(spec: BatchSpec, change: dict[str, object]) -> None:
    done_before(spec, "abc", WORKS)
    with pytest.raises(UserError, match=next(iter(change))):
        done_before(replace(spec, **change), "abc", WORKS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="manifest_sha256"):
        done_before(spec, "def", WORKS)
