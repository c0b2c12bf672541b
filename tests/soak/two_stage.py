"""How much faster two stages are than their U-Net at full resolution, and what picking, cropping and merging take of it.

    python tests/soak/two_stage.py --json two-stage.json

The paper's networks on 768x768 pixels, sixteen patches of 96x96, timed in turn by ``jobs/benchmark.py``. Ends with exit code 1 where they
are less than 3 times as fast, or where picking, cropping and merging take 10 % of the time or more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEAST_TIMES, MOST_SHARE = 3.0, 0.1
OVERHEAD = ("pick", "crop", "merge")


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of the benchmark: full resolution first."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("platform", "models", "serve"))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cost.json"
        command = [sys.executable, str(ROOT / "jobs" / "benchmark.py"), "--models", "unet_s2,two_stage", "--size", args.size]
        command += ["--repeats", str(args.repeats), "--threads", str(args.threads), "--json", str(path)]
        subprocess.run(command, env=env, check=True)
        records: list[dict[str, Any]] = json.loads(path.read_text())
    return records


def figures(records: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast, and the share of what the paper fears."""
    stages = records[1]["stages_ms"]
    return {
        "times as fast": round(1 / records[1]["latency_ratio"], 3),
        "pick + crop + merge": round(sum(stages[step] for step in OVERHEAD) / sum(stages.values()), 4),
        "full resolution ms": records[0]["latency_ms"],
        "two stages ms": records[1]["latency_ms"],
    }


def main() -> int:
    """Measure, print, and say what was not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="768x768")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0 leaves its choice")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    found = figures(measured(args))
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    slow, heavy = found["times as fast"] < LEAST_TIMES, found["pick + crop + merge"] >= MOST_SHARE
    if slow:
        print(f"{found['times as fast']} times as fast as full resolution, not {LEAST_TIMES:g}", file=sys.stderr)
    if heavy:
        print(f"picking, cropping and merging take {found['pick + crop + merge']:.1%}, not less than {MOST_SHARE:.0%}", file=sys.stderr)
    return int(slow or heavy)


if __name__ == "__main__":
    sys.exit(main())
