"""The server in the foreground. Told to stop, it lets nobody in any more, answers those who are inside, and only then ends."""

import logging
import signal
import threading
import time
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions

from stratum.cluster import ray_is_local
from stratum_serve.app import APPLICATION, build
from stratum_serve.config import ServeArgs, load_config

logger = logging.getLogger("ray.serve")
LINGER_SECONDS = 1.0  # in which the last answers pass Serve's proxy


def serve_until_told(args: ServeArgs) -> None:
    """Serve on the Ray that is connected until SIGTERM or Ctrl-C; a second one ends at once. Raises UserError where that cannot begin."""
    config = load_config(args)
    told = stop_signals()  # after Ray, which takes SIGTERM for itself
    serve.start(http_options=HTTPOptions(port=config.port))
    serve.run(build(args), name=APPLICATION)
    told.wait()
    drain(config.limits.seconds)
    if not ray_is_local():
        serve.shutdown()  # type: ignore[no-untyped-call]  # on a Ray of its own, all ends with that


def stop_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; the next one has its usual effect."""
    told = threading.Event()
    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}

    def tell(_signal: int, _frame: object) -> None:
        told.set()
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, tell)
    return told


def drain(seconds: float) -> None:
    """Close the door of every ingress replica, and wait so long at most until nobody is inside."""
    logger.info("told to stop: requests that are under way are answered, others refused")
    try:
        serve.get_app_handle(APPLICATION).broadcast("drain").results(timeout_s=seconds)
        time.sleep(LINGER_SECONDS)
    except Exception as error:  # whatever it was, the server ends
        logger.warning("some requests may not have been answered: %s", error)
