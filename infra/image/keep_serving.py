"""Deploy a configuration of Ray Serve, and again whenever the cluster has lost it: ``python keep_serving.py ADDRESS FILE [PAUSE]``.

A head that starts anew, as after a reboot, does not know what was served before. ADDRESS is that of its dashboard, PAUSE the seconds
between two looks.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import yaml
from healthcheck import ray_token

PATH = "/api/serve/applications/"
PAUSE = 15.0  # seconds
TIMEOUT = 60.0  # seconds; the first deployment starts Serve itself


def lost(wanted: set[str], address: str) -> bool:
    """Whether one of the applications is not there, or has failed to start. Raises OSError where the cluster does not answer."""
    there = ask("GET", address).get("applications", {})
    return any(there.get(name, {}).get("status") in (None, "DEPLOY_FAILED") for name in wanted)


def ask(method: str, address: str, body: Any = None) -> Any:
    """What the cluster answers, from JSON; None where it says nothing."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + PATH, data=data, method=method, headers={"Content-Type": "application/json"})
    if token := ray_token():
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def keep(address: str, file: str, pause: float) -> None:
    """Look, deploy, wait, for ever. The first look always deploys, for the file may be a new one."""
    deployed = False
    while True:
        try:
            with open(file, encoding="utf-8") as text:
                config = yaml.safe_load(text)
            if not deployed or lost({application["name"] for application in config["applications"]}, address):
                ask("PUT", address, config)
                deployed = True
                print(f"keep_serving: {file} is deployed", flush=True)
        except urllib.error.HTTPError as error:
            with error:
                print(f"keep_serving: {address} refuses: {error.code} {error.read(2000).decode(errors='replace')}", flush=True)
        except OSError as error:  # the head is away, or about to start
            print(f"keep_serving: {address}: {error}", flush=True)
        time.sleep(pause)


if __name__ == "__main__":
    keep(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else PAUSE)
