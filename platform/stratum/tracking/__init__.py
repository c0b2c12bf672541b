"""MLflow runs that always end, and metrics that arrive even where the server was away for a while."""

from stratum.tracking.logger import RunLogger
from stratum.tracking.runs import Run, flatten, open_run
from stratum.tracking.stale import close_stale_runs
from stratum.tracking.store import check_reachable, client_for, tracking_uri, ui_command

__all__ = ["Run", "RunLogger", "check_reachable", "client_for", "close_stale_runs", "flatten", "open_run", "tracking_uri", "ui_command"]
