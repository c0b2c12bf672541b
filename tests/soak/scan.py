"""Memory and time of a scan with the paper's two stages: both scans within the stated memory, and the larger no more than the smaller.

    python tests/soak/scan.py --sides 6000,20000 --json scan.json

Each scan is a tiled TIFF of RGB with deflate, segmented in a process of its own from the file to the tiled mask. Weights are random. Ends
with exit code 1 where a promise is broken.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parents[2]
MOST_MB = 4096  # of resident memory, whatever the size
GROWTH = 1.1  # of the largest scan's memory over the smallest's
TILE = 512


def write_scan(path: Path, side: int) -> None:
    """Blurred noise, tile by tile."""
    rng = np.random.default_rng(0)

    def tiles() -> Iterator[np.ndarray]:
        for _ in range((-(-side // TILE)) ** 2):
            yield rng.integers(0, 256, (TILE // 16, TILE // 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)

    options: dict[str, Any] = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "rgb", "maxworkers": 1}
    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, bigtiff=True, **options)


def segment(path: Path, share: float) -> dict[str, Any]:
    """What it takes to segment a scan, in this process."""
    import torch

    from stratum.inference.scan_masks import ScanWriter
    from stratum.inference.work import BatchSpec, Work
    from stratum_models.catalog import build_model
    from stratum_models.optimize import prepare_for_inference
    from stratum_models.package import Manifest

    torch.manual_seed(0)
    model = prepare_for_inference(build_model("two_stage", num_classes=2, overrides={"pick": "share", "share": share}))
    manifest = Manifest(preset="two_stage", classes=("ground", "vessel"), num_classes=2, task="semantic")
    before = peak_mb()
    start = time.monotonic()
    spec = BatchSpec(data=str(path), storage=str(path.parent / "out"))
    found = ScanWriter(spec, manifest, None).find(model, Work(index=0, uri=str(path), name=path.stem), say)
    seconds = time.monotonic() - start
    assert tifffile.TiffFile(path.parent / "out" / "masks" / f"{path.stem}.tif").pages[0].shape == (found.height, found.width)
    return {
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb()),
        "before_mb": round(before),
        "refined": found.refined,
        "patches": found.patches,
    }


def say(line: str) -> None:
    """Progress goes where the figures do not."""
    print(line, file=sys.stderr, flush=True)


def peak_mb() -> float:
    """The highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(side: int, share: float, folder: Path) -> dict[str, Any]:
    """A scan of a side in a process of its own."""
    path = folder / f"{side}.tif"
    write_scan(path, side)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve")), "TMPDIR": str(folder)}
    command = [sys.executable, __file__, "--file", str(path), "--share", str(share)]
    found: dict[str, Any] = json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)
    path.unlink()
    return found


def broken_promises(found: dict[int, dict[str, Any]]) -> list[str]:
    """What was promised and is not so."""
    least, most = found[min(found)]["peak_mb"], max(one["peak_mb"] for one in found.values())
    lines = [f"{side}x{side}: {one['peak_mb']} MB, not {MOST_MB}" for side, one in found.items() if one["peak_mb"] > MOST_MB]
    return lines + ([f"memory grows from {least} to {most} MB"] if most > GROWTH * least else [])


def main() -> int:
    """Measure, print, and say what was not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", default="6000,20000", help="pixels of the scans' sides")
    parser.add_argument("--share", type=float, default=0.1, help="of the patches that are refined")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--file", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        print(json.dumps(segment(args.file, args.share)))
        return 0
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="stratum-soak-") as folder:
        for side in sorted(map(int, args.sides.split(","))):
            found[side] = measured(side, args.share, Path(folder))
            print(f"{side}x{side}: {found[side]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    lines = broken_promises(found)
    for line in lines:
        print(line, file=sys.stderr)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
