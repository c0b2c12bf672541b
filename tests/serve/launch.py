"""A Ray of its own with the serving application on it: ``launch.py PORT METRICS-PORT TEMP-FOLDER JSON``; ends when its input is closed."""

import json
import sys

import ray
from ray import serve

from stratum_serve.app import build
from stratum_serve.config import ServeArgs


def main() -> None:
    port, metrics, folder, args = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _metrics_export_port=metrics,
        _temp_dir=folder,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(ServeArgs(**args)))
    print("UP", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
