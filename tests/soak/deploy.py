"""``deploy.py JSON`` deploys the serving application on the cluster that ``RAY_ADDRESS`` names, on every node's port 8000, and goes."""

import json
import sys

import ray
from ray import serve

from stratum_serve.app import APPLICATION, build
from stratum_serve.config import ServeArgs


def main() -> None:
    ray.init(namespace="serve")
    serve.start(proxy_location="EveryNode", http_options={"host": "0.0.0.0", "port": 8000})
    serve.run(build(ServeArgs(**json.loads(sys.argv[1]))), name=APPLICATION)


if __name__ == "__main__":
    main()
