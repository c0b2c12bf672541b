"""Short trainings in processes of their own, and what is known of them afterwards."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from stratum.data.source import DataSpec, load_data
from stratum_models.interface import InstanceTarget

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "losnet_debug", "--size", "64", "--augment", "none", "--batch", "4", "--evaluate-every", "1", "--cost-size", "64x64"]


def train_flags(images: int, epochs: int) -> list[str]:
    """The flags of a run named ``one``."""
    return [*SMALL, "--data", f"synthetic://ore?images={images}&size=64&seed=0", "--epochs", str(epochs), "--name", "one"]


def write_ore(folder: Path, images: int) -> Path:
    """Images and masks of ids, as a labelling tool leaves them."""
    data = load_data(DataSpec(uri=f"synthetic://ore?images={images}&size=64&seed=0"))
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index, sample in enumerate([*data.train, *data.val]):
        assert isinstance(sample.target, InstanceTarget)
        ids = np.zeros(sample.image.shape[1:], dtype=np.uint16)
        for number, mask in enumerate(sample.target.masks.numpy(), 1):
            ids[mask] = number
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / "images" / f"{index:02d}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{index:02d}.png")
    return folder


class Training:
    """``jobs/train.py`` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process, self._errors = process, errors
        self.said = ""

    def read_until(self, words: str) -> None:
        """Read what it says up to a line with these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        raise AssertionError(self.said + self.end()[1])

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr, once it has ended."""
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        code = self.process.wait(seconds)
        self._errors.seek(0)
        return code, self._errors.read()


@contextmanager
def training(*flags: str | Path) -> Iterator[Training]:
    """A job that ends with the block, and its process group with it."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve"))
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *map(str, flags)]
    with tempfile.TemporaryFile("w+", dir="/tmp") as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell that starts tests in the background ignores it
        )
        try:
            yield Training(process, errors)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def only_run(tracking: str) -> Run:
    """The one MLflow run that there is."""
    client = MlflowClient(tracking)
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run


def losses(tracking: str) -> list[tuple[int, float]]:
    """Epochs and losses of the one run that there is, as often as they were logged."""
    history = MlflowClient(tracking).get_metric_history(only_run(tracking).info.run_id, "train/loss")
    return sorted((metric.step, metric.value) for metric in history)
