"""The head of a cluster that serves goes, for a while, under load."""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from machines import Cluster, cluster
from network import Node
from running import Load, until
from serve_tools import make_package, picture, png
from watching import finish

from stratum_serve.keys import new_key

PATH = "/v1/models/slag/segment?format=png"
PATIENCE_S = 240.0
BEFORE_S = 15.0  # of which the rate of answers is that of a cluster with a head
LONGEST_GAP_S = 5.0  # between two answers of a node without a head
LEAST_SHARE = 0.5  # of the rate before: the head's death costs a moment of everybody's time


def head_lost(args: argparse.Namespace) -> dict[str, Any]:
    """Three machines serve under load; the head goes for a while, then another takes its place and rules what it finds."""
    key, entry = new_key("soak", ("predict",))
    with tempfile.TemporaryDirectory(prefix="stratum-soak-") as folder:
        package = make_package(Path(folder) / "slag", "slag_deeplab_debug")
        two = {"min_replicas": 2, "max_replicas": 2}
        config = {
            "models": [{"name": "slag", "package": str(package)}],
            "scaling": {**two, "cpus": 0.5},
            "ingress": {**two, "cpus": 0.1, "max_ongoing_requests": 100},  # with 0 CPUs, one might be put on the head
            "batches": f"{folder}/batches",
        }
        env = {"STRATUM_SERVE_KEYS": json.dumps([entry.model_dump(mode="json")])}
        with cluster((0, 1, 1), redis=True, env=env) as made:
            finish(made, [str(Path(__file__).with_name("deploy.py")), json.dumps(config)])
            for node in made.nodes[1:]:
                until(lambda node=node: ready(node), PATIENCE_S)
            return head_replaced(made, key, args.away_s)


def head_replaced(made: Cluster, key: str, seconds: float) -> dict[str, Any]:
    """The head is away for so long; the workers' addresses are asked all the time."""
    workers = made.nodes[1:]
    with loads(workers, key) as asked:
        for load in asked:
            load.more(20)
        time.sleep(BEFORE_S)
        gone = time.monotonic()
        made.head.kill()
        time.sleep(seconds)
        start = time.monotonic()
        made.start(made.head, 0)
        back = time.monotonic()
        for load in asked:
            load.more(20)
        statuses = dict(sum((Counter(load.statuses()) for load in asked), Counter[int]()))
        before = [times(load, gone - BEFORE_S, gone) for load in asked]
        meanwhile = [times(load, gone, start) for load in asked]
        while_back = [times(load, start, back) for load in asked]
    gaps = [longest_gap(one, gone, start) for one in meanwhile]
    shares = [len(now) / (start - gone) / (len(then) / BEFORE_S) if then else 0.0 for now, then in zip(meanwhile, before, strict=True)]
    found = {
        "seconds without a head": seconds,
        "answers per second and node before": [round(len(one) / BEFORE_S, 1) for one in before],
        "answers per second and node meanwhile": [round(len(one) / (start - gone), 1) for one in meanwhile],
        "longest gap of each node meanwhile, in seconds": [round(gap, 2) for gap in gaps],
        "longest gap of each node while the head starts, in seconds": [round(longest_gap(one, start, back), 2) for one in while_back],
        "statuses": statuses,
        "seconds until it is back": round(back - start, 1),
    }
    assert max(gaps) < LONGEST_GAP_S, found
    assert min(shares) >= LEAST_SHARE, found
    assert set(statuses) == {200}, found
    start = time.monotonic()
    first = next(process for node in workers for process in node.processes() if replica(node, process.pid))
    first.kill()
    until(lambda: replicas(workers) < 2, PATIENCE_S)
    until(lambda: replicas(workers) == 2, PATIENCE_S)
    return found | {"seconds until the new head replaced a replica": round(time.monotonic() - start, 1)}


def times(load: Load, begin: float, end: float) -> list[float]:
    """When a node gave its good answers of a span."""
    return sorted(when for when, status, _ in load.answers if status == 200 and begin < when <= end)


def longest_gap(answered: list[float], begin: float, end: float) -> float:
    """The longest time without an answer, in seconds; the ends of the span count as answers."""
    return max(after - before for before, after in pairwise([begin, *answered, end]))


def replica(node: Node, pid: int) -> bool:
    """Whether a process is a replica of the models."""
    return any(one.pid == pid and "ServeReplica" in title and ":models" in title for one, title in node.titled())


def replicas(nodes: list[Node]) -> int:
    """How many replicas of the models there are."""
    return sum("ServeReplica" in title and ":models" in title for node in nodes for title in node.titles())


@contextmanager
def loads(nodes: list[Node], key: str) -> Iterator[list[Load]]:
    """Plain clients of every node."""
    image, headers = png(picture()), {"Authorization": f"Bearer {key}"}
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Load(ask=lambda client: client.post(PATH, content=image, headers=headers), url=f"http://{node.address}:8000", clients=2)
            )
            for node in nodes
        ]


def ready(node: Node) -> bool:
    """Whether a node answers."""
    try:
        return httpx.get(f"http://{node.address}:8000/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
