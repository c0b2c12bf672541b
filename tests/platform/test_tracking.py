"""Tracking against a real sqlite store and a real MLflow server that goes away and comes back."""

import pickle
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow_server import Server, running_server
from sqlalchemy.exc import OperationalError

from stratum.tracking import RunLogger, check_reachable, client_for, close_stale_runs, flatten, open_run, tracking_uri, ui_command
from stratum.tracking.delivery import Outbox, deliver_leftovers, metric_item, spool_folder
from stratum.tracking.stale import ALIVE, HOST, PID, STARTED, is_abandoned, owner_tags
from stratum.tracking.store import one_line_errors, shown
from stratum_models.errors import UserError


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def store() -> str:
    """One store for the module: making one runs some fifty migrations."""
    return tracking_uri()


def status_of(uri: str, run_id: str) -> str:
    return str(client_for(uri).get_run(run_id).info.status)


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client_for(uri).get_metric_history(run_id, key))


def test_without_settings_the_store_is_one_absolute_file_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri() == f"sqlite:///{tmp_path}/data/stratum/mlflow.db"
    assert ui_command(tracking_uri()).endswith(tracking_uri())


def test_a_relative_sqlite_file_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db?timeout=20")
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db?timeout=20"


def test_the_command_for_the_ui_works_as_printed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/with space/mlflow.db?timeout=20&x=1"
    words = shlex.split(ui_command(uri))
    assert words[-1] == uri
    elsewhere = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([*words[:4], "--help"], env=elsewhere, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert ui_command("http://127.0.0.1:5000") == "open http://127.0.0.1:5000"


def test_passwords_are_never_shown() -> None:
    for uri in ("https://me:s3cr@t@example.org:5000/x", "postgresql+psycopg://me:s3cr@t@db/x", "mysql://db/x?user=me&password=s3cr@t"):
        for text in (ui_command(uri), shown(f"{uri}: refused")):
            assert "s3cr" not in text
            assert "***" in text
    assert shown("http://127.0.0.1:5000/a@b") == "http://127.0.0.1:5000/a@b"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("mysql://me:secret@127.0.0.1:{port}/x", "pip install mysqlclient"),
        ("postgresql+asyncpg://me:secret@127.0.0.1:{port}/x", "pip install asyncpg"),
        ("postgresql+nonsense://me:secret@127.0.0.1:{port}/x", "postgresql.nonsense"),
    ],
)
def test_a_database_without_its_driver_is_refused(uri: str, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(UserError) as caught:
        check_reachable(uri.format(port=listening.getsockname()[1]))
    message = str(caught.value)
    assert says in message
    assert "secret" not in message
    assert "\n" not in message


def test_errors_of_the_database_are_one_line() -> None:
    with pytest.raises(UserError, match="tracking store postgresql://me") as caught, one_line_errors("postgresql://me:secret@db/x"):
        raise OperationalError("SELECT 1", None, Exception("no route to postgresql://me:secret@db/x\nafter 3 tries"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nested_parameters_become_flat() -> None:
    @dataclass(frozen=True)
    class Spec:
        epochs: int
        sizes: tuple[int, ...]

    assert flatten({"train": Spec(epochs=3, sizes=(1, 2)), "data": {"uri": "x", "classes": {}}}) == {
        "train.epochs": "3",
        "train.sizes": "(1, 2)",
        "data.uri": "x",
    }


def test_a_run_with_a_child_and_a_worker(store: str, tmp_path: Path) -> None:
    figure = tmp_path / "curve.txt"
    figure.write_text("a figure")
    folder = tmp_path / "overlays"
    folder.mkdir()
    (folder / "1.txt").write_text("one")
    with open_run("ore", "sweep", {"train": {"epochs": 2}}, {"kind": "sweep"}) as parent:
        with (
            open_run("ore", "trial", {"lr": 0.1}, parent_id=parent.run_id) as child,
            pickle.loads(pickle.dumps(child.logger())) as worker,
        ):
            for epoch in range(3):
                worker({"val/mask_ap50": epoch / 4, "loss/total": float("nan")}, epoch)
            worker.log_artifact(figure, "figures")
        parent.log_artifact(folder)
        parent.log_metrics({"cost/latency_ms": 12.5})
    assert history(store, child.run_id, "val/mask_ap50") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    client = client_for(store)
    inner, outer = client.get_run(child.run_id), client.get_run(parent.run_id)
    assert (inner.info.status, outer.info.status) == ("FINISHED", "FINISHED")
    assert inner.data.tags["mlflow.parentRunId"] == parent.run_id
    assert outer.data.params == {"train.epochs": "2"}
    assert outer.data.metrics == {"cost/latency_ms": 12.5}
    assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= inner.data.metrics.keys()
    assert [file.path for file in client.list_artifacts(child.run_id, "figures")] == ["figures/curve.txt"]
    assert [file.path for file in client.list_artifacts(parent.run_id, "overlays")] == ["overlays/1.txt"]
    assert list(spool_folder(store).iterdir()) == []  # all was delivered
    assert not Path("mlruns").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_a_run_ends_whatever_happens(store: str, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), open_run("ore", "run") as run:
        raise error
    assert status_of(store, run.run_id) == status


def test_a_parent_ends_the_children_that_a_scheduler_stopped(store: str) -> None:
    with open_run("ore", "sweep") as parent:
        client = client_for(store)
        child = client.create_run(parent.experiment_id, tags={"mlflow.parentRunId": parent.run_id}).info.run_id
        other = client.create_run(parent.experiment_id).info.run_id
    assert status_of(store, child) == "KILLED"
    assert status_of(store, other) == "RUNNING"


def test_a_run_can_be_opened_again(store: str) -> None:
    with pytest.raises(KeyboardInterrupt), open_run("ore", "run", {"a": 1}) as first:
        raise KeyboardInterrupt
    with open_run("ore", "run", resume_id=first.run_id) as second:
        assert status_of(store, second.run_id) == "RUNNING"
        second.log_metrics({"x": 1.0}, 5)
    assert first.run_id == second.run_id
    assert status_of(store, first.run_id) == "FINISHED"


DRIVER = textwrap.dedent(
    """
    import signal, sys, time
    from stratum.tracking import open_run
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background leaves it ignored
    with open_run("ore", "driver") as run:
        run.log_metrics({"x": 1.0}, 1)
        run.flush()
        print(run.run_id, flush=True)
        time.sleep(300)
    """
)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, "RUNNING"), (signal.SIGTERM, "KILLED"), (signal.SIGINT, "KILLED")])
def test_a_driver_that_is_killed(store: str, number: int, status: str) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        run_id = driver.stdout.readline().strip()
        assert close_stale_runs(store) == []  # it lives
        driver.send_signal(number)
        driver.wait(60)
    finally:
        driver.kill()
        driver.communicate()
    assert status_of(store, run_id) == status
    with open_run("ore", "next"):
        assert status_of(store, run_id) == "KILLED"


def test_only_dead_processes_of_this_machine_are_abandoned() -> None:
    tags = owner_tags()
    assert not is_abandoned(tags)
    assert not is_abandoned({})
    assert is_abandoned({**tags, STARTED: str(float(tags[STARTED]) - 1000)})  # the number was given to another process
    assert not is_abandoned({**tags, HOST: "elsewhere", STARTED: "0"})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_abandoned({**tags, PID: str(ended.pid)})


def test_a_silent_run_of_another_machine_is_closed_with_what_is_below(store: str) -> None:
    with open_run("ore", "sweep") as sweep, open_run("ore", "trial", parent_id=sweep.run_id) as trial:
        client = client_for(store)
        client.set_tag(sweep.run_id, HOST, "another")
        assert close_stale_runs(store) == []
        client.set_tag(sweep.run_id, ALIVE, str(time.time() - 1000))
        assert close_stale_runs(store) == [sweep.run_id]
        assert {status_of(store, run.run_id) for run in (sweep, trial)} == {"KILLED"}


def test_a_run_says_that_its_process_is_alive(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratum.tracking.stale.BEAT_SECONDS", 0.01)
    with open_run("ore", "run") as run:
        client_for(store).set_tag(run.run_id, ALIVE, "0")
        end = time.monotonic() + 30
        while client_for(store).get_run(run.run_id).data.tags[ALIVE] == "0":
            assert time.monotonic() < end
            time.sleep(0.02)


def test_what_the_store_refuses_does_not_hold_up_the_rest(store: str, caplog: pytest.LogCaptureFixture) -> None:
    with open_run("ore", "run") as run:
        run.log_metrics({"bad[name]": 1.0, "good": 2.0})
    assert client_for(store).get_run(run.run_id).data.metrics == {"good": 2.0}
    assert "bad[name]" in caplog.text


def test_a_spool_delivered_twice_is_not_doubled(store: str, tmp_path: Path) -> None:
    with open_run("ore", "run") as run:
        pass
    outbox = Outbox(store, run.run_id)
    item = metric_item({"x": 3.0, "y": 4.0}, 7)
    outbox.put(item)
    assert outbox.flush(30)
    outbox.put(item)  # the process did not live to note that it arrived
    outbox.put({**item, "values": [*item["values"], ["z", 5.0, item["values"][0][2], 7]]})
    assert outbox.close(30)
    for key, value in (("x", 3.0), ("y", 4.0), ("z", 5.0)):
        assert history(store, run.run_id, key) == [(7, value)]


def test_a_live_process_keeps_its_spool(store: str) -> None:
    with open_run("ore", "run") as run:
        outbox = Outbox(store, run.run_id)
        assert deliver_leftovers(store, 5) == 0
        assert outbox.close(30)


def test_an_artifact_store_that_cannot_be_written_does_not_keep_a_run_from_ending(store: str, tmp_path: Path) -> None:
    figure = tmp_path / "figure.txt"
    figure.write_text("a figure")
    with open_run("broken artifacts", "run") as run:
        place = Path(client_for(store).get_run(run.run_id).info.artifact_uri.removeprefix("file://")).parent
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a file where a folder should be")
        run.log_artifact(figure)
        run.log_metrics({"x": 1.0})
        run.finish("FINISHED", timeout=2)
    assert status_of(store, run.run_id) == "FINISHED"
    assert history(store, run.run_id, "x") == [(0, 1.0)]
    place.unlink()
    assert deliver_leftovers(store, 30) == 1
    assert [file.path for file in client_for(store).list_artifacts(run.run_id)] == ["figure.txt"]


def test_a_package_that_nobody_can_register_is_dropped_by_name(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with open_run("ore", "run") as run:
        run.log_package(empty, "no package")
    assert status_of(store, run.run_id) == "FINISHED"
    assert "model.json: missing" in caplog.text


@pytest.mark.parametrize("_again", range(5))  # what threads do to each other does not show every time
def test_many_threads_lose_nothing(store: str, _again: int) -> None:
    with open_run("ore", "run") as run, run.logger(system_metrics=False) as worker:
        threads = [threading.Thread(target=lambda n=n: [worker({f"m{n}": float(i)}, i) for i in range(50)]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for n in range(8):
        assert history(store, run.run_id, f"m{n}") == [(i, float(i)) for i in range(50)]


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:{port}",
        "postgresql://user:secret@127.0.0.1:{port}/mlflow",
        "file:///tmp/mlruns",
        "./mlruns",
        "sqlite:////proc/none/mlflow.db",
    ],
)
def test_a_store_that_cannot_be_used_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    with socket.socket() as bound:  # bound, not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=bound.getsockname()[1]))
        with pytest.raises(UserError) as caught, open_run("ore", "run"):
            pytest.fail("a run was opened")
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    assert uri[:8] in message
    assert "MLFLOW_TRACKING_URI" in message


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratum.tracking.store.READ_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot be reached"), open_run("ore", "run"):
            pytest.fail("a run was opened")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running_server(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server


@pytest.mark.timeout(600)
def test_metrics_of_an_outage_arrive_later_and_once(server: Server, tmp_path: Path) -> None:
    figure = tmp_path / "figure.txt"
    figure.write_text("drawn while the server was away")
    with open_run("ore", "goes on", {"a": 1}) as run, open_run("ore", "ends in the outage") as short:
        worker = RunLogger(run.run_id, server.uri, system_metrics=False)
        worker({"val/mask_ap50": 0.0}, 0)
        assert worker.flush(60)
        server.stop()
        for epoch in range(1, 4):
            worker({"val/mask_ap50": epoch / 10}, epoch)
        worker.log_artifact(figure, "figures")
        assert not worker.flush(1)
        short.log_metrics({"x": 1.0})
        short.finish("FINISHED", timeout=1)
        server.start()
        assert worker.close(60)
    assert history(server.uri, run.run_id, "val/mask_ap50") == [(epoch, epoch / 10) for epoch in range(4)]
    assert [file.path for file in client_for(server.uri).list_artifacts(run.run_id, "figures")] == ["figures/figure.txt"]
    assert status_of(server.uri, run.run_id) == "FINISHED"
    with open_run("ore", "the next start"):  # delivers what the short run could not
        pass
    assert history(server.uri, short.run_id, "x") == [(0, 1.0)]
    assert status_of(server.uri, short.run_id) == "FINISHED"
    assert list(spool_folder(server.uri).iterdir()) == []
