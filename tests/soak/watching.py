"""Jobs on a cluster of machines, and what MLflow knows of them."""

import subprocess

from machines import Cluster
from mlflow import MlflowClient
from mlflow.entities import Run


def finish(made: Cluster, job: list[str]) -> None:
    """Run a job to its good end."""
    with made.driver(job) as driver:
        wait(driver)


def read_until(driver: "subprocess.Popen[str]", words: str) -> str:
    """Read what a job says up to a line with these words, which is returned."""
    said = []
    assert driver.stdout is not None
    for line in driver.stdout:
        said.append(line)
        if words in line:
            return line.strip()
    raise AssertionError("".join(said)[-3000:])


def wait(driver: "subprocess.Popen[str]") -> None:
    """Until a job has ended well."""
    said, _ = driver.communicate()
    assert driver.returncode == 0, said[-3000:]


def runs(tracking: str, experiment: str) -> list[Run]:
    """The MLflow runs of an experiment."""
    client = MlflowClient(tracking)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def history(tracking: str, run: Run) -> list[tuple[int, float]]:
    """Epochs and losses, as often as they were logged."""
    return sorted((one.step, one.value) for one in MlflowClient(tracking).get_metric_history(run.info.run_id, "train/loss"))
