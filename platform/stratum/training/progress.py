"""What a run says while it goes on: epoch, loss terms, images per second, time left."""

import time
from collections.abc import Callable, Mapping

from stratum import logs

Say = Callable[[str], None]


def say_nothing(_line: str) -> None:
    """Keeps quiet."""


def say_on_stdout(line: str) -> None:
    """One line on stdout, at once, so that it shows under Ray too."""
    print(logs.line(line), flush=True)


def duration(seconds: float) -> str:
    """``75`` seconds as ``1m15s``, hours as ``2h05m``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


class Progress:
    """Says how far an epoch is, every ``interval_s`` seconds at most, and a line at its end."""

    def __init__(self, say: Say, *, epochs: int, first_epoch: int, interval_s: float = 10.0) -> None:
        self._say, self._epochs, self._first, self._interval = say, epochs, first_epoch, interval_s
        self._start = self._spoke = time.monotonic()

    def step(self, epoch: int, share: float, terms: Mapping[str, float], images_per_s: float) -> None:
        """In the middle of an epoch, ``share`` (0..1) of it done."""
        now = time.monotonic()
        if share < 1 and now - self._spoke >= self._interval:
            self._spoke = now
            self._say(f"epoch {epoch + 1}/{self._epochs} {share:4.0%}  {_listed(terms)}  {images_per_s:.1f} images/s")

    def epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """At the end of an epoch, with its metrics."""
        self._spoke = time.monotonic()
        done = epoch + 1 - self._first
        left = (self._spoke - self._start) / done * (self._epochs - epoch - 1)
        losses = {name.removeprefix("train/"): value for name, value in row.items() if name.startswith("train/loss")}
        # A set may have a hundred classes: the figures of each are in the history.
        scores = {name: value for name, value in row.items() if name.startswith("val/") and not name.startswith(("val/iou_", "val/dice_"))}
        parts = [f"epoch {epoch + 1}/{self._epochs}", _listed(losses), f"{row['train/images_per_s']:.1f} images/s", _listed(scores)]
        self._say("  ".join([part for part in parts if part] + [f"{duration(left)} left"]))


def _listed(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
