"""Folders that the nodes of a cluster share, or do not. The other node is this one: another process of it stands in another folder."""

from pathlib import Path

import pytest
import ray

from stratum import shared
from stratum.shared import check_shared
from stratum_models.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "other_nodes", lambda: {ray.get_runtime_context().get_node_id(): "10.0.0.2"})


def test_folders_that_are_shared_pass_and_are_left_as_they_were(another: None, tmp_path: Path) -> None:
    check_shared(str(tmp_path / "new" / "runs"), f"sqlite:///{tmp_path}/mlflow.db")
    check_shared("s3://bucket/runs", "http://tracker")
    assert not list(tmp_path.iterdir())


def test_folders_of_one_node_are_refused(another: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = "/proc/self/cwd"
    with pytest.raises(UserError, match=f"^--storage {own}/runs: node 10.0.0.2 of the cluster does not see it: name a folder that all"):
        check_shared(f"{own}/runs", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match=f"^tracking store sqlite:///{own}/mlflow.db: node 10.0.0.2 .*: start `mlflow server`"):
        check_shared(str(tmp_path), f"sqlite:///{own}/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_a_node_alone_needs_nothing_shared() -> None:
    assert shared.other_nodes() == {}
    check_shared("/proc/self/cwd/runs", "sqlite:////proc/self/cwd/mlflow.db")
