"""A cluster of Ray on one machine, with a namespace for each of its nodes; for the head's state, a Redis beside them."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from network import Node, bridge, namespace

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GCS_PORT, DASHBOARD_PORT, REDIS_PORT = 6379, 8265, 6390


class Missing(RuntimeError):
    """Something that this machine has not, in one line."""


@dataclass(kw_only=True)
class Cluster:
    """A head and its workers."""

    folder: Path  # for logs and Ray's own files
    env: dict[str, str]  # of everything; a driver's also has the head's address
    redis: str = ""  # address of what keeps the head's state
    nodes: list[Node] = field(default_factory=list)

    @property
    def head(self) -> Node:
        """The first node."""
        return self.nodes[0]

    @property
    def for_drivers(self) -> dict[str, str]:
        """The environment of a driver on the head's machine."""
        return {**self.env, "RAY_ADDRESS": f"{self.head.address}:{GCS_PORT}"}

    def start(self, node: Node, cpus: int) -> None:
        """`ray start` on a node: the head, or a worker that joins it."""
        command = [str(BIN / "ray"), "start", "--block", f"--node-ip-address={node.address}", f"--num-cpus={cpus}", "--num-gpus=0"]
        command += [f"--object-store-memory={128 * 2**20}", "--disable-usage-stats"]
        if node is self.head:
            command += ["--head", f"--port={GCS_PORT}", f"--dashboard-host={node.address}", f"--dashboard-port={DASHBOARD_PORT}"]
            command += [f"--temp-dir={self.folder / 'ray'}"]
            (self.folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)  # a lost head's, by which Ray would think that it runs
            env = {**self.env, **({"RAY_REDIS_ADDRESS": self.redis} if self.redis else {})}
        else:
            command += [f"--address={self.head.address}:{GCS_PORT}"]
            env = self.env
        log = self.folder / f"{node.name}.log"
        with log.open("ab") as out:
            node.process = subprocess.Popen(node.inside(command), env=env, stdout=out, stderr=out, cwd=self.folder, start_new_session=True)
        self.wait_for_nodes(sum(one.process is not None for one in self.nodes), node)

    def wait_for_nodes(self, count: int, node: Node, seconds: float = 180) -> None:
        """Until so many nodes are alive."""
        script = "import ray; ray.init(logging_level='ERROR'); print(sum(node['Alive'] for node in ray.nodes()))"
        end = time.monotonic() + seconds
        said = ""
        while time.monotonic() < end:
            if node.process is None or node.process.poll() is not None:
                raise RuntimeError(f"ray start ended on {node.name}: {(self.folder / f'{node.name}.log').read_text()[-2000:]}")
            done = subprocess.run(self.head.inside([sys.executable, "-c", script]), env=self.for_drivers, capture_output=True, text=True)
            said = done.stdout.strip() or done.stderr[-1000:]
            if done.returncode == 0 and said.splitlines()[-1] == str(count):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{count} nodes were not there after {seconds:g} s: {said}")

    @contextmanager
    def driver(self, script: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """A Python script on the head's machine; it ends with the block."""
        with subprocess.Popen(
            self.head.inside([sys.executable, *script]),
            env=self.for_drivers,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@contextmanager
def cluster(cpus: Sequence[int], *, redis: bool = False, env: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A running cluster with a node for each number of CPUs, the head first; with ``redis``, the head can be replaced."""
    check_machine(redis=redis)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray puts sockets below it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = Cluster(folder=folder, env=_environment(env or {}))
        subnet = stack.enter_context(bridge())
        for index in range(len(cpus)):
            made.nodes.append(stack.enter_context(namespace(subnet, index)))
        if redis:
            made.redis = f"{subnet.address}:{REDIS_PORT}"
            stack.enter_context(redis_server(subnet.address, folder))
        for node, count in zip(made.nodes, cpus, strict=True):
            made.start(node, count)
        yield made


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    own = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "300",  # how long nodes wait for a head that is away
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",  # the host's name leads to 127.0.0.1, which is another machine in each namespace
    }
    return {**os.environ, **own, **more}


def check_machine(*, redis: bool) -> None:
    """Raises Missing where this machine cannot carry such a cluster."""
    if os.geteuid() != 0:
        raise Missing("network namespaces need root")
    for program in ("ip", *(("redis-server",) if redis else ())):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed: apt-get install {'iproute2' if program == 'ip' else program}")


@contextmanager
def redis_server(address: str, folder: Path) -> Iterator[None]:
    """A Redis for what the head knows."""
    command = ["redis-server", "--bind", address, "--port", str(REDIS_PORT), "--dir", str(folder), "--protected-mode", "no", "--save", ""]
    with (folder / "redis.log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for_port(address, REDIS_PORT)
        yield
    finally:
        process.terminate()
        process.wait(30)


def wait_for_port(address: str, port: int, seconds: float = 60) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), 2).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
