"""Old checkpoints go, and nothing else: on this machine and on S3, with a real MLflow store."""

import json
from dataclasses import replace
from pathlib import Path

import prune as job
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratum import storage
from stratum.retention import DAY_MS, UNKNOWN, Known, best_of_sweeps, decide, prune
from stratum.tracking import client_for
from stratum_models.errors import UserError

NOW = 10_000 * DAY_MS


def known(
    run_id: str, *, days: float = 100.0, status: str = "FINISHED", sweep: str = "", accuracy: float | None = None, alias: str = ""
) -> Known:
    ended = 0 if status == "RUNNING" else int(NOW - days * DAY_MS)
    return Known(run_id=run_id, status=status, ended_ms=ended, sweep=sweep, accuracy=accuracy, aliases=(alias,) if alias else ())


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (known("a"), ""),
        (known("a", days=29), "ended 29.0 days ago"),
        (known("a", alias="losnet@champion"), "is losnet@champion"),
        (known("a", status="RUNNING"), "is running"),
        (known("a", sweep="s/p", accuracy=0.1), "best of sweep s"),
        (replace(known("a", sweep="s/p"), winner=True), "winner of sweep s"),
        (replace(known("a", sweep="s/p"), sweeping=True), "sweep s goes on"),
        (known("b"), UNKNOWN),
    ],
)
def test_why_a_run_is_kept(run: Known, reason: str) -> None:
    assert decide({"/runs/a": "a"}, {run.run_id: run}, days=30, now_ms=NOW) == {"/runs/a": reason}


def test_a_run_that_was_never_tracked_is_kept() -> None:
    assert decide({"/runs/a": None}, {}, days=0, now_ms=NOW) == {"/runs/a": UNKNOWN}


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.none() | st.floats(0, 1)), max_size=12))
def test_each_sweep_keeps_one_of_its_best(trials: list[tuple[str, float | None]]) -> None:
    runs = [known(str(number), sweep=sweep, accuracy=accuracy) for number, (sweep, accuracy) in enumerate(trials)]
    best = best_of_sweeps(runs)
    measured = {sweep for sweep, accuracy in trials if accuracy is not None}
    assert best.keys() == measured
    for sweep, run_id in best.items():
        assert trials[int(run_id)] == (sweep, max(accuracy for name, accuracy in trials if name == sweep and accuracy is not None))


def make_run(root: str, name: str, uri: str, *, days: float, **tags: str) -> str:
    """A run as training leaves it: its file, a checkpoint, a package, and its MLflow run, which ended some days ago."""
    client = client_for(uri)
    run = client.create_run("0", tags=tags)
    client.log_metric(run.info.run_id, "val/mask_ap50", float(name.partition("-")[2] or 0) / 10)
    client.set_terminated(run.info.run_id, end_time=int(NOW - days * DAY_MS))
    folder = storage.join(root, name)
    storage.write_json(storage.join(folder, "run.json"), {"spec": {}, "run_id": run.info.run_id})
    for path in (
        "checkpoints/checkpoints.json",
        "checkpoints/epoch-1/model.safetensors",
        "ray/checkpoint_1/state.json",
        "package/model.json",
    ):
        storage.write_bytes(storage.join(folder, path), b"{}" * 50)
    return str(run.info.run_id)


def furnish(root: str, uri: str) -> None:
    """An old run, a young one, a champion, and a sweep of three."""
    make_run(root, "old", uri, days=40)
    make_run(root, "young", uri, days=10)
    champion = make_run(root, "champion", uri, days=400)
    client = client_for(uri)
    client.create_registered_model("losnet")
    version = client.create_model_version("losnet", "s", champion)
    client.set_registered_model_alias("losnet", "champion", str(version.version))
    parent = client.create_run("0", tags={"stratum.winner": "trial-5"}).info.run_id
    client.set_terminated(parent)
    for trial in ("trial-3", "trial-5", "trial-7"):
        tags = {"stratum.sweep": "sweep", "stratum.variant": trial, "mlflow.parentRunId": parent}
        make_run(f"{root}/sweep/trials", trial, uri, days=40, **tags)


def checkpoints(root: str) -> set[str]:
    """The runs that have their checkpoints."""
    files = storage.list_files(root)
    assert sum(file.endswith("/package/model.json") for file in files) == 6
    assert sum(file.endswith("/run.json") for file in files) == 6
    whole = {file.split("/checkpoints/")[0] for file in files if "/checkpoints/" in file}
    assert whole == {file.split("/ray/")[0] for file in files if "/ray/" in file}
    return {storage.name(folder) for folder in whole}


EVERYTHING = {"old", "young", "champion", "trial-3", "trial-5", "trial-7"}


def test_a_dry_run_changes_nothing_and_deleting_removes_what_it_listed(tmp_path: Path, mlflow_sqlite: str) -> None:
    root = str(tmp_path / "runs")
    furnish(root, mlflow_sqlite)
    said: list[tuple[str, str]] = []
    planned = prune(root, days=30, now_ms=NOW, delete=False, each=lambda one: said.append((storage.name(one.folder), one.reason)))
    assert dict(said) == {
        "old": "",
        "young": "ended 10.0 days ago",
        "champion": "is losnet@champion",
        "trial-3": "",
        "trial-5": "winner of sweep sweep",
        "trial-7": "best of sweep sweep",
    }
    assert planned == 2 * 3 * 100
    assert checkpoints(root) == EVERYTHING
    assert prune(root, days=30, now_ms=NOW, delete=True, each=lambda one: None) == planned
    assert checkpoints(root) == {"young", "champion", "trial-5", "trial-7"}
    assert prune(root, days=30, now_ms=NOW, delete=True, each=lambda one: None) == 0


def test_on_s3_too(s3_env: "pytest.FixtureRequest", mlflow_sqlite: str) -> None:
    root = f"s3://{s3_env.bucket()}/runs"  # type: ignore[attr-defined]
    furnish(root, mlflow_sqlite)
    assert prune(root, days=30, now_ms=NOW, delete=True, each=lambda one: None) == 2 * 3 * 100
    assert checkpoints(root) == {"young", "champion", "trial-5", "trial-7"}


def test_a_run_that_is_resumed_meanwhile_keeps_its_checkpoints(tmp_path: Path, mlflow_sqlite: str) -> None:
    root = str(tmp_path)
    make_run(root, "a", mlflow_sqlite, days=40)
    second = make_run(root, "b", mlflow_sqlite, days=40)
    reasons = []

    def resume(verdict: object) -> None:
        client_for(mlflow_sqlite).update_run(second, status="RUNNING")
        reasons.append(verdict.reason)  # type: ignore[attr-defined]

    prune(root, days=30, now_ms=NOW, delete=True, each=resume)
    assert reasons == ["", "is running again"]
    assert (tmp_path / "b" / "checkpoints").is_dir()
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_the_job_says_what_it_would_do(tmp_path: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(str(tmp_path), "a", mlflow_sqlite, days=-(NOW / DAY_MS))
    path = tmp_path / "a" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "0" * 32}))
    job.main(job.Args(storage=str(tmp_path)))
    said = capsys.readouterr().out
    assert f"{tmp_path}/a  {UNKNOWN}" in said
    assert "nothing was changed: give --delete" in said


def test_negative_days_are_refused(tmp_path: Path, mlflow_sqlite: str) -> None:
    with pytest.raises(UserError, match="--days -1"):
        prune(str(tmp_path), days=-1, now_ms=NOW, delete=False, each=lambda one: None)
