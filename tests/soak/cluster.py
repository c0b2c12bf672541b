"""A cluster of several machines loses one of them: a worker in the middle of an epoch, with notice and without; the head, while it serves.

    python tests/soak/cluster.py --json cluster.json

Prints its figures, and ends with exit code 1 where a promise is broken. The machines are network namespaces of this one: it needs root.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serve"))

from lost_head import head_lost
from lost_worker import worker_lost
from parts import run_parts


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default="worker,head")
    parser.add_argument("--epochs", type=int, default=2, help="of the training that loses a worker")
    parser.add_argument("--images", type=int, default=1000, help="of that training: an epoch must last longer than the notice of a machine")
    parser.add_argument("--away-s", type=float, default=30.0, help="seconds without a head")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    return run_parts({"worker": lambda: worker_lost(args), "head": lambda: head_lost(args)}, args.parts, args.json)


if __name__ == "__main__":
    sys.exit(main())
