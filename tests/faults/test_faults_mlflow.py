"""A training whose MLflow server is killed on the way, and comes back on the same port and store."""

import threading
import time
from pathlib import Path

import pytest
from in_process import exit_code, load_job
from mlflow import MlflowClient
from mlflow_server import Server, running_server
from runs import losses, only_run, train_flags


class Outage:
    """Kills a server at the end of the first epoch and starts it after so many seconds, or before the training is at its end."""

    def __init__(self, server: Server, seconds: float, epochs: int) -> None:
        self._server, self._seconds, self._epochs = server, seconds, epochs
        self._back = threading.Thread(target=self._come_back)
        self.missed = 0  # epochs that ended while it was away

    def say(self, line: str) -> None:
        """In place of the job's own."""
        print(line, flush=True)
        if "epoch 1/" in line:
            self._server.stop()
            self._back.start()
        elif "epoch " in line and self._back.is_alive():
            self.missed += 1
        if f"epoch {self._epochs}/" in line:
            self._back.join()
        elif self._seconds:
            time.sleep(2 * self._seconds / self._epochs)  # so that it comes back in the middle of the training

    def _come_back(self) -> None:
        time.sleep(self._seconds)
        self._server.start()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seconds", "epochs"), [(0.0, 4), pytest.param(60.0, 20, marks=pytest.mark.soak)])
def test_a_training_outlives_its_mlflow_server(seconds: float, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        outage = Outage(server, seconds, epochs)
        with monkeypatch.context() as patch:
            patch.setattr(load_job("train"), "say", outage.say)
            assert exit_code("train", *train_flags(images=40, epochs=epochs), "--workers", "0", "--storage", tmp_path / "runs") == 0
        assert outage.missed >= 1
        run = only_run(server.uri)
        assert run.info.status == "FINISHED"
        assert [epoch for epoch, _ in losses(server.uri)] == list(range(1, epochs + 1))
        client = MlflowClient(server.uri)
        each_epoch = {name for name in run.data.metrics if name.startswith(("train/", "val/"))} - {"train/step_ms"}  # of the whole run
        for name in each_epoch:
            assert {metric.step for metric in client.get_metric_history(run.info.run_id, name)} == set(range(1, epochs + 1)), name
        assert {"package", "evaluation"} <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
