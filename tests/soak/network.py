"""Machines on one machine: network namespaces with addresses of their own, on a switch. Needs root and iproute2."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil


@dataclass(kw_only=True)
class Node:
    """A namespace with its address, and `ray start` in it while it lives."""

    name: str
    address: str
    process: subprocess.Popen[bytes] | None = None

    def inside(self, command: Sequence[str]) -> list[str]:
        """A command as it is run on this node."""
        return ["ip", "netns", "exec", self.name, *command]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on this node."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True).stdout
        found = []
        for pid in listed.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def titled(self) -> list[tuple[psutil.Process, str]]:
        """Its processes and what they call themselves; Ray names workers after their work."""
        return [(one, title) for one in self.processes() if (title := _title(one))]

    def titles(self) -> list[str]:
        """What its processes call themselves."""
        return [title for _, title in self.titled()]

    def kill(self) -> None:
        """The machine is gone: all of its processes at once, without a word to anyone."""
        for _ in range(3):  # what was being started meanwhile goes too
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)
        self.process = None


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """The switch that the namespaces are plugged into, and this machine's own address on it."""

    name: str
    prefix: str

    @property
    def address(self) -> str:
        """Of this machine."""
        return f"{self.prefix}.1"


@contextmanager
def bridge() -> Iterator[Bridge]:
    """A switch with a subnet of its own."""
    number = os.getpid() % 250
    made = Bridge(name=f"st{os.getpid()}", prefix=f"10.213.{number}")
    _ip("link", "add", made.name, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.address}/24", "dev", made.name)
        _ip("link", "set", made.name, "up")
        yield made
    finally:
        _ip("link", "del", made.name)


@contextmanager
def namespace(switch: Bridge, index: int) -> Iterator[Node]:
    """A namespace on the switch; whatever runs in it ends with it."""
    node = Node(name=f"{switch.name}n{index}", address=f"{switch.prefix}.{10 + index}")
    cable = f"{switch.name}v{index}"
    _ip("netns", "add", node.name)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", node.name)
        _ip("link", "set", cable, "master", switch.name, "up")
        _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", node.name, "link", "set", device, "up")
        _ip("-n", node.name, "route", "add", "default", "via", switch.address)  # Ray looks for its own address by way of one
        yield node
    finally:
        node.kill()
        _ip("netns", "del", node.name)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
