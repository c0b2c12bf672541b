"""The ways to run a network, on this machine: how long each takes, and how far it is from plain PyTorch.

    python tests/soak/backends.py --package outputs/demo-package --json backends.json

Ends with exit code 1 where one says something else than plain PyTorch.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

from stratum_models.interface import InstancePrediction, Prediction
from stratum_serve.engine import Backend, Engine, open_package

SIZE = (480, 640)
ROUNDS = 15
TOLERANCE = 1e-3


def difference(found: Prediction, wanted: Prediction) -> float:
    """The largest difference in scores and the share of mask pixels that differ, or the largest in probabilities."""
    if isinstance(found, InstancePrediction):
        assert isinstance(wanted, InstancePrediction)
        if len(found) != len(wanted):
            return float("inf")
        scores = float((found.scores - wanted.scores).abs().max()) if len(found) else 0.0
        return max(scores, float((found.masks != wanted.masks).float().mean()) if len(found) else 0.0)
    assert not isinstance(wanted, InstancePrediction)
    return float((found.probabilities - wanted.probabilities).abs().max())


def main() -> int:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, default=Path("outputs/demo-package"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engines: dict[str, Engine] = {name: open_package(args.package, backend=name) for name in get_args(Backend)}
    found: dict[str, Any] = {name: {} for name in engines}
    for batch in args.batches:
        noise = torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(batch))
        images = list(noise)
        wanted = engines["torch"].predict(images)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for name, engine in engines.items():
            pairs = zip(engine.predict(images), wanted, strict=True)
            found[name]["difference"] = max(found[name].get("difference", 0.0), *(difference(*pair) for pair in pairs))
        for _ in range(ROUNDS):  # in turn, so that what else the machine does meets all of them
            for name, engine in engines.items():
                start = time.perf_counter()
                engine.predict(images)
                times[name].append(time.perf_counter() - start)
        for name, seconds in times.items():
            found[name][f"ms an image, {batch} together"] = round(1000 * statistics.median(seconds) / batch, 1)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(one["difference"] > TOLERANCE for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
