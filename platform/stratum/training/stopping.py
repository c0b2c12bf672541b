"""Being told to stop: SIGTERM asks a run to write a checkpoint and to end before whoever sent the signal loses patience."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_sigterm(grace_s: float) -> Iterator[threading.Event]:
    """An event that SIGTERM sets, for the time of the block; in the main thread.

    Who looks at the event has ``grace_s`` seconds. After them, and at a second SIGTERM, `KeyboardInterrupt` ends whatever goes on.
    """
    told = threading.Event()

    again = threading.Timer(grace_s, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM))
    again.daemon = True

    def tell(_signal: int, _frame: FrameType | None) -> None:
        if told.is_set() or grace_s <= 0:
            raise KeyboardInterrupt
        told.set()
        again.start()

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield told
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
