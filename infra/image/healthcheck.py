"""Exit 0 where this container's Ray node is alive, as its own agent says, else 1."""

import os
import sys
import urllib.request

AGENT_PORT = 52365  # of Ray's agent on every node
TIMEOUT = 5.0  # seconds


def healthy(port: int, token: str) -> bool:
    """Whether the agent answers that its raylet is alive."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/local_raylet_healthz")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ray_token() -> str:
    """The cluster's token, from the environment or the file that it names."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN") or not path:
        return os.environ.get("RAY_AUTH_TOKEN", "")
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else AGENT_PORT
    sys.exit(0 if healthy(port, ray_token()) else 1)
