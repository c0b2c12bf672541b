"""Servers that are away, cut the line, or never answer; readers and writers that die half-way."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

from stratum import storage
from stratum.storage import client as storage_client
from stratum.storage.client import client

Failure = Callable[[Callable[[str], Any], str], storage.StorageError]

CALLS: tuple[Callable[[str], Any], ...] = (
    storage.read_bytes,
    storage.fetch,
    lambda uri: storage.write_bytes(uri, b"x"),
    storage.list_files,
    storage.fetch_tree,
    storage.ray_filesystem,
)
# How many bytes of the answer to pass on: all of them (None), or so many and then cut the line.
Fault = Callable[[bytes], int | None]


class Server(Protocol):
    endpoint: str
    env: dict[str, str]

    def bucket(self) -> str: ...


class Proxy:
    """Passes bytes between clients and the server, and cuts the line where ``fault`` says so."""

    def __init__(self, server: str) -> None:
        self.fault: Fault = lambda request: None
        self.hold = threading.Event()  # set: a line that would be cut stays open and silent
        self._server = (urlsplit(server).hostname, urlsplit(server).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for line in self._sockets:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                caller = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._sockets += [caller, server]
            line = _Line(self, caller, server)
            threading.Thread(target=line.ask, daemon=True).start()
            threading.Thread(target=line.answer, daemon=True).start()


class _Line:
    def __init__(self, proxy: Proxy, caller: socket.socket, server: socket.socket) -> None:
        self.proxy, self.caller, self.server = proxy, caller, server
        self.left: int | None = None

    def ask(self) -> None:
        with suppress(OSError):
            while data := self.caller.recv(65536):
                self.left = self.proxy.fault(data)
                if self.left == 0:
                    break
                self.server.sendall(data)
        self._end()

    def answer(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(65536):
                self.caller.sendall(data[: self.left])
                if self.left is not None:
                    self.left = max(0, self.left - len(data))
                    if self.left == 0:
                        break
        if not self.proxy.hold.is_set():
            self._end()

    def _end(self) -> None:
        for line in (self.caller, self.server):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(bucket: str, s3_env: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(s3_env.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield proxy
    proxy.close()


def test_a_server_that_is_not_there_is_given_up(failure: Failure, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:  # bound and not listening: every connection is refused
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        errors = [failure(call, f"{bucket}/folder/x.bin") for call in CALLS]
    for error in errors:
        assert isinstance(error, storage.UnreachableError)
        assert "the server cannot be reached" in str(error)
        assert endpoint in str(error)
        assert "check AWS_ENDPOINT_URL and the network" in str(error)


def test_the_number_of_tries_is_bounded(failure: Failure, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    tries: list[bytes] = []

    def refuse(request: bytes) -> int:
        tries.append(request)
        return 0

    proxy.fault = refuse
    assert isinstance(failure(storage.read_bytes, f"{bucket}/folder/x.bin"), storage.UnreachableError)
    assert len(tries) == 3 * 3  # three rounds of three


def test_a_server_that_never_answers_is_given_up(failure: Failure, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_client, "READ_TIMEOUT", 0.3)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.hold.set()
    proxy.fault = lambda request: 1
    error = failure(storage.read_bytes, f"{bucket}/folder/x.bin")
    assert isinstance(error, storage.UnreachableError)
    assert "Read timeout" in str(error)


@pytest.mark.parametrize("sent", [1, 100_000])
def test_a_call_takes_no_longer_than_it_may(sent: int, bucket: str, proxy: Proxy) -> None:
    proxy.hold.set()
    proxy.fault = lambda request: sent  # then silence
    begin = time.monotonic()
    with pytest.raises(storage.UnreachableError), storage.within(0.6):
        storage.read_once(f"{bucket}/folder/x.bin", 10**6)
    assert time.monotonic() - begin < 15  # and not a round of attempts of 30 s each
    proxy.hold.clear()
    proxy.fault = lambda request: None
    with storage.within(60):
        assert storage.read_once(f"{bucket}/folder/x.bin", 200_000) == b"data" * 50_000


def test_an_answer_cut_in_the_middle_is_asked_for_again(bucket: str, proxy: Proxy) -> None:
    cuts = iter([100_000, None])
    proxy.fault = lambda request: next(cuts) if request.startswith(b"GET") else None
    assert storage.read_bytes(f"{bucket}/folder/x.bin") == b"data" * 50_000


def test_an_answer_cut_every_time_leaves_nothing(failure: Failure, bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    proxy.fault = lambda request: 100_000
    assert isinstance(failure(storage.read_bytes, f"{bucket}/folder/x.bin"), storage.UnreachableError)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_reader_killed_in_the_middle_leaves_no_half_copy(bucket: str, proxy: Proxy) -> None:
    uri = f"{bucket}/folder/x.bin"
    stuck = threading.Event()
    proxy.hold.set()

    def stall(request: bytes) -> int:
        stuck.set()
        return 100_000

    proxy.fault = stall
    reader = subprocess.Popen([sys.executable, "-c", "import sys; from stratum import storage; storage.fetch(sys.argv[1])", uri])
    try:
        assert stuck.wait(60)
    finally:
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    proxy.hold.clear()
    proxy.fault = lambda request: None
    assert storage.read_bytes(uri) == b"data" * 50_000


def test_an_upload_that_fails_in_one_part_leaves_the_old_object_and_no_parts(
    failure: Failure, bucket: str, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.fault = lambda request: 0 if b"partNumber=2" in request else None
    (tmp_path / "large.bin").write_bytes(bytes(9 << 20))
    assert isinstance(
        failure(lambda uri: storage.upload_file(tmp_path / "large.bin", uri), f"{bucket}/folder/x.bin"), storage.UnreachableError
    )
    proxy.fault = lambda request: None
    assert storage.read_bytes(f"{bucket}/folder/x.bin") == b"data" * 50_000
    assert "Uploads" not in client().list_multipart_uploads(Bucket=bucket[5:])


def test_a_tree_whose_upload_fails_has_no_marker(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    for name in ("model.json", "a.bin", "b.bin"):
        storage.write_bytes(str(tmp_path / "tree" / name), b"{}")
    target = f"{bucket}/model"
    storage.upload_tree(tmp_path / "tree", target, last=("model.json",))
    proxy.fault = lambda request: 0 if b"/model/b.bin" in request else None
    with pytest.raises(storage.UnreachableError, match=r"model/b\.bin"):
        storage.upload_tree(tmp_path / "tree", target, last=("model.json",))
    proxy.fault = lambda request: None
    assert not storage.exists(f"{target}/model.json")
    storage.upload_tree(tmp_path / "tree", target, last=("model.json",))
    assert storage.exists(f"{target}/model.json")


def test_the_file_system_for_ray_tries_more_often_than_three_times(bucket: str, proxy: Proxy) -> None:
    filesystem, path = storage.ray_filesystem(f"{bucket}/folder")
    assert filesystem is not None
    refused: list[bytes] = []

    def refuse_four(request: bytes) -> int | None:
        if len(refused) < 4:
            refused.append(request)
            return 0
        return None

    proxy.fault = refuse_four
    assert filesystem.get_file_info(f"{path}/x.bin").size == 200_000
    assert len(refused) == 4
