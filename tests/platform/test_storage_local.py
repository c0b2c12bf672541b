"""Files on this machine: whole or not at all, and every failure in one line."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stratum import storage

KILLED_WRITER = """
import sys, time
from pathlib import Path
from stratum.storage import local
with local.replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half of the new")
    print("half", flush=True)
    time.sleep(600)
"""
LIMITED_WRITER = """
import resource, sys
from stratum import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes(sys.argv[1], b"x" * 5000)
except storage.StorageError as error:
    sys.exit(str(error))
"""


def make_tree(folder: Path) -> dict[str, bytes]:
    files = {"model.json": b"{}", "weights.bin": bytes(range(256)), "sub/deep/a.PNG": b"a", "sub/b.png": b"", "sub/.hidden": b"h"}
    for name, data in files.items():
        storage.write_bytes(str(folder / name), data)
    return files


def test_what_is_written_is_read_again_and_no_other_file_is_left(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "folder" / "x.bin")
    assert not storage.exists(uri)
    for data in (b"first", b"", b"second" * 1000):
        storage.write_bytes(uri, data)
        assert storage.read_bytes(uri) == data
    assert storage.fetch(uri) == Path(uri)
    assert os.listdir(tmp_path / "new" / "folder") == ["x.bin"]
    assert storage.read_bytes("file://" + uri) == data


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "ours"), b"x")
    (tmp_path / "usual").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_writer_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.bin")
    storage.write_bytes(uri, b"old")
    writer = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, uri], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(str(tmp_path)) == [uri]


def test_a_write_that_finds_no_room_leaves_the_old_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.bin")
    storage.write_bytes(uri, b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED_WRITER, uri], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{uri}: File too large"
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_readers_see_one_version_or_the_other(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.bin")
    versions = {bytes([number]) * 50_000 for number in range(8)}
    storage.write_bytes(uri, min(versions))
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read_bytes(uri))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for version in sorted(versions) * 5:
        storage.write_bytes(uri, version)
    done.set()
    for thread in readers:
        thread.join()
    assert seen <= versions


def test_json_goes_there_and_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.json")
    value = {"name": "Käfer", "values": [1, 2.5, None]}
    storage.write_json(uri, value)
    assert storage.read_json(uri) == value
    with pytest.raises(ValueError, match="Out of range float"):
        storage.write_json(uri, float("nan"))
    assert storage.read_json(uri) == value


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_named(tmp_path: Path, data: bytes) -> None:
    uri = str(tmp_path / "x.json")
    storage.write_bytes(uri, data)
    with pytest.raises(storage.StorageError, match=r"x\.json: not valid JSON"):
        storage.read_json(uri)


def test_listing_is_sorted_deep_and_filtered(tmp_path: Path) -> None:
    files = make_tree(tmp_path)
    assert storage.list_files(str(tmp_path)) == sorted(str(tmp_path / name) for name in files)
    assert storage.list_files(f"{tmp_path}/", {".PNG"}) == [str(tmp_path / "sub/b.png"), str(tmp_path / "sub/deep/a.PNG")]
    assert storage.list_files(str(tmp_path), (".tif",)) == []


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    make_tree(tmp_path / "real")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "real" / "sub")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    found = storage.list_files(str(tmp_path / "data"), [".png"])
    assert found == [str(tmp_path / "data" / "images" / "b.png"), str(tmp_path / "data" / "images" / "deep" / "a.PNG")]


def test_a_tree_is_copied_with_its_marker_last(tmp_path: Path) -> None:
    files = make_tree(tmp_path / "from")
    written = storage.upload_tree(tmp_path / "from", str(tmp_path / "to"), last=("model.json",))
    assert sorted(written) == storage.list_files(str(tmp_path / "to"))
    assert {storage.relative(uri, str(tmp_path / "to")): storage.read_bytes(uri) for uri in written} == files
    marker = (tmp_path / "to" / "model.json").stat().st_mtime_ns
    assert all(Path(uri).stat().st_mtime_ns <= marker for uri in written)
    assert storage.fetch_tree(str(tmp_path / "to")) == tmp_path / "to"


def test_a_tree_whose_copy_fails_has_no_marker(tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    storage.upload_tree(tmp_path / "from", str(tmp_path / "to"), last=("model.json",))
    (tmp_path / "from" / "weights.bin").unlink()
    (tmp_path / "from" / "weights.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(storage.MissingError, match=r"from/weights\.bin"):
        storage.upload_tree(tmp_path / "from", str(tmp_path / "to"), last=("model.json",))
    assert not storage.exists(str(tmp_path / "to" / "model.json"))


def test_a_tree_without_its_marker_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "from")
    with pytest.raises(storage.StorageError, match=r"holds no weights\.safetensors"):
        storage.upload_tree(tmp_path / "from", str(tmp_path / "to"), last=("weights.safetensors",))
    assert not storage.exists(str(tmp_path / "to"))


def test_a_tree_onto_itself_changes_nothing(tmp_path: Path) -> None:
    files = make_tree(tmp_path)
    storage.upload_tree(tmp_path, str(tmp_path), last=("model.json",))
    assert {storage.relative(uri, str(tmp_path)): storage.read_bytes(uri) for uri in storage.list_files(str(tmp_path))} == files


def test_removing_takes_files_folders_and_nothing_alike(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    storage.remove_tree(str(tmp_path / "tree" / "model.json"))
    assert not storage.exists(str(tmp_path / "tree" / "model.json"))
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    storage.remove_tree(str(tmp_path / "link"))
    assert storage.exists(str(tmp_path / "tree" / "weights.bin"))
    storage.remove_tree(str(tmp_path / "tree"))
    storage.remove_tree(str(tmp_path / "tree"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", ["/", "s3://bucket", "s3://bucket/"])
def test_everything_at_once_is_not_removed(uri: str) -> None:
    with pytest.raises(storage.StorageError, match="everything there is"):
        storage.remove_tree(uri)


def test_failures_name_the_path_and_the_cause(tmp_path: Path) -> None:
    file, missing = str(tmp_path / "file"), str(tmp_path / "missing")
    storage.write_bytes(file, b"x")
    for function in (storage.read_bytes, storage.fetch, storage.list_files, storage.fetch_tree):
        with pytest.raises(storage.MissingError, match=f"^{missing}: there is no such file or folder"):
            function(missing)
    for function in (storage.list_files, storage.fetch_tree):
        with pytest.raises(storage.StorageError, match=f"^{file}: this is a file, not a folder"):
            function(file)
    for function in (storage.read_bytes, storage.fetch):
        with pytest.raises(storage.StorageError, match=f"^{tmp_path}: this is a folder, not a file"):
            function(str(tmp_path))
    with pytest.raises(storage.StorageError, match=f"^{file}/x: a part of the path is a file"):
        storage.write_bytes(f"{file}/x", b"")
    with pytest.raises(storage.MissingError, match=f"^{missing}: there is no such file"):
        storage.upload_tree(Path(missing), str(tmp_path / "to"))
    with pytest.raises(storage.StorageError, match="the name is too long"):
        storage.write_bytes(str(tmp_path / ("x" * 300)), b"")
    assert storage.exists(f"{file}/x") is False


def test_ray_takes_a_local_path_as_it_is(tmp_path: Path) -> None:
    assert storage.ray_filesystem(f"{tmp_path}/") == (None, str(tmp_path))
