"""Whether what this machine writes is seen by the other nodes of a Ray cluster.

Workers on other nodes write checkpoints to ``--storage`` and figures to the tracking store. A folder or sqlite file that each node has for
itself would take them without a word, and the driver would find nothing.
"""

from pathlib import Path
from uuid import uuid4

from stratum import storage
from stratum.tracking.store import shown, sqlite_path
from stratum_models.errors import UserError

ANSWER_SECONDS = 60.0  # a node that says nothing for so long is left out: it may be on its way out


def check_shared(uri: str, tracking: str = "") -> None:
    """Refuses, on a cluster of several nodes, a folder for results or a sqlite tracking store that not all of them see.

    A marker is written beside each, for which every other node is asked. Nodes that join later are not.

    Raises:
        UserError: names the node and the fix.
    """
    places: list[tuple[Path, str, str]] = []
    if not storage.is_remote(uri):
        places.append((Path(uri), f"--storage {uri}", "name a folder that all nodes share, or s3://"))
    if (store := sqlite_path(tracking)) is not None:
        places.append((store, f"tracking store {shown(tracking)}", "start `mlflow server`, and set MLFLOW_TRACKING_URI to its address"))
    nodes = other_nodes() if places else {}
    markers = [_nearest(path) / f".stratum-{uuid4().hex}" for path, _, _ in places] if nodes else []
    try:
        for marker in markers:
            marker.touch()
        for address, missing in _asked(nodes, markers):
            for marker, (_, what, fix) in zip(markers, places, strict=True):
                if marker in missing:
                    raise UserError(f"{what}: node {address} of the cluster does not see it: {fix}")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror}): choose another place") from error
    finally:
        for marker in markers:
            marker.unlink(missing_ok=True)


def other_nodes() -> dict[str, str]:
    """The addresses of the cluster's other nodes, by Ray's name for them."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["Alive"] and node["NodeID"] != own}


def unseen(paths: list[Path]) -> list[Path]:
    """Those of the paths that are not there, as this node sees it."""
    return [path for path in paths if not path.exists()]


def _asked(nodes: dict[str, str], paths: list[Path]) -> list[tuple[str, list[Path]]]:
    """Each node's address, and what it does not see."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(unseen)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths): address
        for node, address in nodes.items()
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = []
    for one in answered:
        try:
            found.append((asked[one], ray.get(one)))
        except ray.exceptions.RayError:
            continue
    return found


def _nearest(path: Path) -> Path:
    """The nearest folder that is there already, in which ``path`` is or will be."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
