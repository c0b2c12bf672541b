"""Objects on a real S3 server: the cache, trees, listings, and processes side by side."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from stratum import storage
from stratum.storage import cache
from stratum.storage.client import client
from stratum.storage.parallel import in_parallel


class Server(Protocol):
    def bucket(self) -> str: ...


class Requests(list[tuple[str, int]]):
    """What was asked and answered, e.g. ``("GetObject", 304)``."""

    def note(self, model: Any, http_response: Any, **_: object) -> None:
        self.append((model.name, http_response.status_code))


@pytest.fixture
def bucket(s3_env: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "cache"))
    return f"s3://{s3_env.bucket()}"


@pytest.fixture
def requests(bucket: str) -> Iterator[Requests]:
    requests = Requests()
    client().meta.events.register("after-call.s3", requests.note)
    yield requests
    client().meta.events.unregister("after-call.s3", requests.note)


@pytest.fixture
def small_pages(bucket: str) -> Iterator[None]:
    """Listings come three keys a page, so that few objects are many pages."""

    def limit(params: dict[str, Any], **_: object) -> None:
        params.setdefault("MaxKeys", 3)

    client().meta.events.register("provide-client-params.s3.ListObjectsV2", limit)
    yield
    client().meta.events.unregister("provide-client-params.s3.ListObjectsV2", limit)


def write_all(files: dict[str, bytes]) -> dict[str, bytes]:
    in_parallel(lambda uri: storage.write_bytes(uri, files[uri]), files)
    return files


def test_what_is_written_is_read_again(bucket: str) -> None:
    for key, data in (("x.bin", b"data"), ("empty", b""), ("a b/ä+#?%20.json", b"{}")):
        uri = f"{bucket}/{key}"
        assert not storage.exists(uri)
        storage.write_bytes(uri, data)
        assert storage.exists(uri)
        assert storage.read_bytes(uri) == data
        assert storage.fetch(uri).name == key.rpartition("/")[2]
    assert storage.read_json(f"{bucket}/a b/ä+#?%20.json") == {}


def test_what_has_not_changed_is_not_fetched_again(bucket: str, requests: Requests) -> None:
    uri = f"{bucket}/x.bin"
    storage.write_bytes(uri, b"old")
    requests.clear()
    first = storage.fetch(uri)
    assert storage.fetch(uri) == first
    assert storage.read_bytes(uri) == b"old"
    assert requests == [("GetObject", 200), ("GetObject", 304), ("GetObject", 304)]


def test_an_object_replaced_at_once_by_one_of_the_same_size_is_seen(bucket: str, requests: Requests) -> None:
    uri = f"{bucket}/x.bin"
    for number in range(3):
        storage.write_bytes(uri, b"%d" % number)
        assert storage.read_bytes(uri) == b"%d" % number
    assert [status for name, status in requests if name == "GetObject"] == [200] * 3


def test_a_reader_keeps_the_version_it_was_given(bucket: str) -> None:
    uri = f"{bucket}/x.bin"
    storage.write_bytes(uri, b"old")
    old = storage.fetch(uri)
    storage.write_bytes(uri, b"new")
    assert storage.fetch(uri).read_bytes() == b"new"
    assert old.read_bytes() == b"old"


def test_versions_of_the_day_before_are_let_go(bucket: str) -> None:
    uri = f"{bucket}/x.bin"
    storage.write_bytes(uri, b"old")
    old = storage.fetch(uri)
    leftover = old.parents[1] / ".stratum-part-killed"
    leftover.write_bytes(b"half")
    for path in (old.parent, leftover):
        os.utime(path, (0, 0))
    storage.write_bytes(uri, b"new")
    assert storage.fetch(uri).read_bytes() == b"new"
    assert not old.exists()
    assert not leftover.exists()


@pytest.mark.parametrize("damage", ["truncated", "gone", "etag"])
def test_a_damaged_cache_mends_itself(bucket: str, damage: str) -> None:
    uri = f"{bucket}/folder/x.bin"
    storage.write_bytes(uri, b"data")
    copy = storage.fetch(uri)
    copy.chmod(0o644)
    if damage == "truncated":
        copy.write_bytes(b"")
    elif damage == "gone":
        copy.unlink()
    else:
        (copy.parents[1] / "etag").write_bytes(b"\0\0")
    assert storage.read_bytes(uri) == b"data"
    assert (storage.fetch_tree(f"{bucket}/folder") / "x.bin").read_bytes() == b"data"


def test_a_cache_that_cannot_be_written_names_its_setting(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{bucket}/x", b"data")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(storage.StorageError, match=r"file/cache: the cache cannot be written .* set STRATUM_CACHE"):
        storage.read_bytes(f"{bucket}/x")


def test_the_cache_lies_with_the_user_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRATUM_CACHE", str(tmp_path / "mine"))
    assert cache.root() == tmp_path / "mine"
    monkeypatch.delenv("STRATUM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache.root() == tmp_path / "user" / "stratum"


def test_listing_goes_through_pages_and_folders(bucket: str, small_pages: None, requests: Requests) -> None:
    names = [f"data/{split}/{number:02}.{ending}" for split in ("train", "val") for number in range(3) for ending in ("png", "JSON")]
    names += ["data/readme.txt", "data-2/x.png", "data/train/deep/er/x.png"]
    uris = [f"{bucket}/{name}" for name in names]
    write_all(dict.fromkeys([*uris, f"{bucket}/data/empty/.keep"], b"x"))
    client().put_object(Bucket=bucket[5:], Key="data/marker/", Body=b"")
    requests.clear()
    expected = sorted([uri for uri in uris if "data-2" not in uri] + [f"{bucket}/data/empty/.keep"])
    assert storage.list_files(f"{bucket}/data") == expected
    assert storage.list_files(f"{bucket}/data/", {".png"}) == [uri for uri in expected if uri.endswith(".png")]
    assert len(storage.list_files(bucket)) == len(expected) + 1
    assert {name for name, _ in requests} == {"ListObjectsV2"}


def test_a_bucket_without_objects_is_an_empty_folder(bucket: str) -> None:
    assert storage.list_files(bucket) == []
    assert storage.exists(bucket)


def test_a_folder_is_there_when_it_holds_something(bucket: str) -> None:
    write_all({f"{bucket}/a/x": b"", f"{bucket}/a-b": b"", f"{bucket}/abc": b""})
    assert storage.exists(f"{bucket}/a")
    assert storage.exists(f"{bucket}/a/")
    assert not storage.exists(f"{bucket}/ab")
    with pytest.raises(storage.StorageError, match="this is an object, not a folder"):
        storage.list_files(f"{bucket}/abc")


def test_a_tree_goes_there_and_back(bucket: str, tmp_path: Path, requests: Requests) -> None:
    files = {"model.json": b"{}", "weights.bin": os.urandom(9 << 20), "sub/deep/a.png": b"a", "sub/empty": b""}
    for name, data in files.items():
        storage.write_bytes(str(tmp_path / "from" / name), data)
    written = storage.upload_tree(tmp_path / "from", f"{bucket}/models/one", last=("model.json",))
    assert storage.list_files(f"{bucket}/models/one") == sorted(written)
    puts = [name for name, _ in requests if name in ("PutObject", "CompleteMultipartUpload")]
    assert puts.count("CompleteMultipartUpload") == 1
    assert puts[-1] == "PutObject"

    tree = storage.fetch_tree(f"{bucket}/models/one/")
    assert {storage.relative(path, str(tree)): Path(path).read_bytes() for path in storage.list_files(str(tree))} == files
    requests.clear()
    assert storage.fetch_tree(f"{bucket}/models/one") == tree
    assert requests == [("ListObjectsV2", 200)]


def test_a_changed_tree_is_another_folder_and_gets_only_what_changed(bucket: str, requests: Requests) -> None:
    write_all({f"{bucket}/tree/{name}": name.encode() for name in "abcdef"})
    before = storage.fetch_tree(f"{bucket}/tree")
    storage.write_bytes(f"{bucket}/tree/b", b"new")
    storage.remove_tree(f"{bucket}/tree/c")
    requests.clear()
    after = storage.fetch_tree(f"{bucket}/tree")
    assert sorted(os.listdir(after)) == list("abdef")
    assert (after / "b").read_bytes() == b"new"
    assert (before / "b").read_bytes() == b"b"
    assert (before / "c").read_bytes() == b"c"
    assert [name for name, status in requests if status == 200 and name == "GetObject"] == ["GetObject"]


def test_keys_that_climb_out_of_their_folder_are_not_written_to_disk(bucket: str) -> None:
    client().put_object(Bucket=bucket[5:], Key="tree/../../../escaped", Body=b"x")
    with pytest.raises(storage.StorageError, match="no place on a disk"):
        storage.fetch_tree(f"{bucket}/tree")


def test_removing_takes_objects_and_folders_but_no_neighbours(bucket: str, small_pages: None) -> None:
    write_all({f"{bucket}/tree/{number}": b"x" for number in range(7)} | {f"{bucket}/tree-2/x": b"x", f"{bucket}/one": b"x"})
    client().put_object(Bucket=bucket[5:], Key="tree/marker/", Body=b"")
    storage.remove_tree(f"{bucket}/tree")
    storage.remove_tree(f"{bucket}/tree")
    storage.remove_tree(f"{bucket}/one")
    assert storage.list_files(bucket) == [f"{bucket}/tree-2/x"]
    assert not storage.exists(f"{bucket}/tree")


SHARING = """
import multiprocessing, sys
from functools import partial
from stratum import storage
from stratum.storage.parallel import in_parallel

bucket, method = sys.argv[1:]
files = {f"{bucket}/x/{number}.bin": bytes([number]) * 10_000 for number in range(4)}
in_parallel(lambda uri: storage.write_bytes(uri, files[uri]), files)
storage.exists(bucket)  # the parent's client is in use before the fork
with multiprocessing.get_context(method).Pool(2) as pool:
    # Each gets all of them at once with the others, from an empty cache.
    for paths in pool.map_async(partial(in_parallel, storage.fetch), [list(files)] * 4, chunksize=1).get(timeout=120):
        assert [path.read_bytes() for path in paths] == list(files.values())
    assert len(set(pool.map_async(storage.fetch_tree, [f"{bucket}/x"] * 4, chunksize=1).get(timeout=120))) == 1
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_the_cache(bucket: str, method: str) -> None:
    # In a program of its own: this one may run Ray, whose threads and signal handlers do not survive a fork.
    subprocess.run([sys.executable, "-c", SHARING, bucket, method], check=True, timeout=280)
    assert len(list(cache.root().rglob("*.bin"))) >= 4
    assert not list(cache.root().rglob(".stratum-part-*"))


def test_ray_gets_a_file_system_that_writes_where_we_read(bucket: str) -> None:
    filesystem, path = storage.ray_filesystem(f"{bucket}/runs/one/")
    assert path == f"{bucket[5:]}/runs/one"
    copy = pickle.loads(pickle.dumps(filesystem))
    with copy.open_output_stream(f"{path}/checkpoint.bin") as stream:
        stream.write(b"weights")
    assert storage.read_bytes(f"{bucket}/runs/one/checkpoint.bin") == b"weights"
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert secret not in pickle.dumps(filesystem)
    assert storage.ray_filesystem(bucket)[1] == bucket[5:]


def test_rays_file_system_trusts_whom_we_trust(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "own.pem"))
    filesystem, _ = storage.ray_filesystem(bucket)
    assert filesystem is not None
    assert filesystem.__reduce__()[1][0]["tls_ca_file_path"] == str(tmp_path / "own.pem")
