"""Names: what resolves to what, and what is refused."""

import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratum import storage
from stratum_models.errors import UserError

PART = st.text("abcXYZ019 ._-+#?%~äß:", min_size=1, max_size=8).filter(lambda part: part not in (".", ".."))
PARTS = st.lists(PART, min_size=1, max_size=5)
BASES = st.sampled_from(["s3://bucket", "s3://bucket/some/folder", "/", "/data/ore", "relative/folder"])


@given(BASES, PARTS)
def test_join_appends_every_part_and_relative_takes_them_off_again(base: str, parts: list[str]) -> None:
    joined = storage.join(base, *parts)
    assert joined == storage.resolve(base).rstrip("/") + "/" + "/".join(parts)
    assert storage.relative(joined, storage.resolve(base)) == "/".join(parts)
    assert storage.name(joined) == parts[-1]
    assert storage.join(storage.parent(joined), parts[-1]) == joined


@given(BASES, PARTS)
def test_joining_at_once_or_in_steps_is_the_same(base: str, parts: list[str]) -> None:
    stepwise = base
    for part in parts:
        stepwise = storage.join(stepwise, part)
    assert stepwise == storage.join(base, *parts) == storage.join(base, "/".join(parts))


@given(st.lists(st.sampled_from(["a", "b", ".", "..", ""]), max_size=8))
def test_dots_are_worked_out_inside_the_bucket_and_refused_beyond_it(parts: list[str]) -> None:
    depth, escapes = 0, False
    for part in parts:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        escapes = escapes or depth < 0
    uri = "s3://bucket/" + "/".join(parts)
    if escapes and "/../" in f"/{posixpath.normpath('/'.join(parts).strip('/'))}/":
        with pytest.raises(storage.StorageError, match="leaves its bucket"):
            storage.resolve(uri)
    elif not escapes:
        resolved = storage.resolve(uri)
        assert resolved.removeprefix("s3://bucket").count("/") == depth
        assert storage.resolve(resolved) == resolved


@given(st.one_of(PARTS.map("/".join), PARTS.map(lambda parts: "s3://bucket/" + "//".join(parts)), PARTS.map(lambda p: "/" + "/".join(p))))
def test_resolving_twice_changes_nothing(uri: str) -> None:
    once = storage.resolve(uri)
    assert storage.resolve(once) == once
    assert not once.endswith("/")
    assert storage.is_remote(once) or os.path.isabs(once)


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("/data//ore/./x/../y/", "/data/ore/y"),
        ("//data/ore", "/data/ore"),
        ("file:///data/some%20ore", "/data/some ore"),
        ("file://localhost/data", "/data"),
        ("S3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket//a///b", "s3://bucket/a/b"),
        ("s3://bucket/a b#?%20", "s3://bucket/a b#?%20"),
        ("synthetic://ore?images=64&size=256&seed=0", "synthetic://ore?images=64&size=256&seed=0"),
    ],
)
def test_normal_forms(given_name: str, expected: str) -> None:
    assert storage.resolve(given_name) == expected


def test_the_home_and_the_working_folder_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert storage.resolve("~/ore") == str(tmp_path / "home" / "ore")
    assert storage.resolve("ore") == str(tmp_path / "ore")
    assert storage.resolve(Path("ore")) == str(tmp_path / "ore")
    assert storage.join("ore", "../coal") == str(tmp_path / "coal")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "is not a name"),
        ("a\0b", "is not a name"),
        ("gs://bucket/x", "gs: is not supported"),
        ("https://example.org/x.png", "https: is not supported"),
        ("models:/losnet@champion", "models: is not supported"),
        ("s3:/bucket/x", "one slash is missing"),
        ("file://server/x", "another machine"),
        ("s3://", "not the name of a bucket"),
        ("s3:///x", "not the name of a bucket"),
        ("s3://a b/x", "not the name of a bucket"),
        ("s3://bucket/../x", "leaves its bucket"),
    ],
)
def test_what_is_refused_says_why_in_one_line(uri: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        storage.resolve(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["/etc/passwd", "s3://other/x", "file:///x"])
def test_an_absolute_part_is_refused(part: str) -> None:
    with pytest.raises(storage.StorageError, match="is absolute"):
        storage.join("s3://bucket/a", part)


def test_generated_data_has_no_files() -> None:
    for function in (storage.exists, storage.read_bytes, storage.list_files, storage.fetch, storage.join):
        with pytest.raises(storage.StorageError, match="generated data has no files"):
            function("synthetic://ore")


def test_suffixes_are_lower_case() -> None:
    assert storage.suffix("s3://bucket/a.b/Image.PNG") == ".png"
    assert storage.suffix("/data/ore.v2/readme") == ""
    assert storage.name("s3://bucket") == ""
    assert storage.parent("s3://bucket") == "s3://bucket"
    assert storage.parent("/") == "/"


def test_relative_refuses_what_lies_elsewhere() -> None:
    with pytest.raises(storage.StorageError, match="does not lie under"):
        storage.relative("/data/ore-2/x", "/data/ore")
