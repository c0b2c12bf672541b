"""Which MLflow store is used, and whether it can be reached.

``MLFLOW_TRACKING_URI`` names it. Without, it is one sqlite file per user at an absolute path: a relative one would land in the upload
folder of a submitted job. The URI is resolved in the driver and handed to the workers.
"""

import fcntl
import functools
import logging
import os
import re
import shlex
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from stratum_models.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
CONNECT_SECONDS, READ_SECONDS = 3.0, 20.0  # a server's first answer after its start can take several seconds
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module -> what pip calls it
# MLflow's own defaults wait minutes for a server that is away; here the spool does the waiting.
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def data_folder() -> Path:
    """The per-user folder of the default store and of the spool."""
    return platformdirs.user_data_path("stratum")


def tracking_uri() -> str:
    """The store that is configured, with an absolute path where it is a sqlite file."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        return f"{SQLITE}{data_folder().absolute() / 'mlflow.db'}"
    path = sqlite_path(uri)
    if path is None or path.is_absolute():
        return uri
    return SQLITE + str(path.absolute()) + uri.removeprefix(SQLITE + str(path))


def sqlite_path(uri: str) -> Path | None:
    """The file behind ``sqlite:///...``, None for any other URI."""
    return Path(uri.removeprefix(SQLITE).split("?")[0]) if uri.startswith(SQLITE) else None


def client_for(uri: str) -> "MlflowClient":
    """A client of the store and of its registry, with short timeouts unless the environment sets others."""
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # here: the import takes seconds, which `--help` should not cost

    for talker in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(talker).setLevel(logging.WARNING)  # else a new sqlite file prints every migration
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def check_reachable(uri: str) -> None:
    """Raise UserError where the store cannot be reached (within seconds), does not answer (within half a minute) or refuses us."""
    scheme = urllib.parse.urlsplit(uri).scheme
    path = sqlite_path(uri)
    if path is not None:
        _prepare_sqlite(uri, path)
    elif scheme in ("http", "https"):
        _probe_server(uri)
    elif scheme in ("postgresql", "mysql", "mssql") or "+" in scheme:
        _check_driver(uri)
        _probe_port(uri)
    elif not scheme.startswith("databricks"):
        raise UserError(
            f"tracking store {shown(uri)}: not a store that MLflow can write to: set MLFLOW_TRACKING_URI to http://..., or sqlite:///..."
        )


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The id of an experiment, made where there is none yet."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri, name)))
        except MlflowException:  # someone else was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(f"experiment {name!r} was deleted in {shown(uri)}: restore it in the MLflow UI, or use another --experiment")
    return str(found.experiment_id)


def ui_command(uri: str) -> str:
    """What shows the runs: the address of the server, or the command, for a shell, that starts one on the store.

    A password is masked, since the line is printed: it is for the reader to put in again.
    """
    if uri.startswith("http"):
        return f"open {shown(uri)}"
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", shown(uri)])


def shown(text: str) -> str:
    """A URI, or a message with URIs in it, fit to print: passwords masked."""
    text = re.sub(r"(://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|pwd|token)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


@contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """MLflow's and SQLAlchemy's exceptions as UserError that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UserError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(f"tracking store {shown(uri)}: {one_line(error)}: check MLFLOW_TRACKING_URI and its server") from error


def one_line(error: BaseException) -> str:
    """The message of an exception, short, on one line and without passwords."""
    return shown(" ".join(str(error).split()))[:240] or type(error).__name__


def _artifact_location(uri: str, name: str) -> str | None:
    """Where a store without a server keeps artifacts: MLflow's own choice would be ``./mlruns``. A server decides for itself."""
    if uri.startswith(("http", "databricks")):
        return None
    path = sqlite_path(uri)
    folder = path.parent if path is not None else data_folder().absolute()
    return (folder / "artifacts" / (re.sub(r"[^\w.-]+", "-", name) or "experiment")).as_uri()


@functools.cache
def _prepare_sqlite(uri: str, path: Path) -> None:
    """Create or open the database once, alone: two processes that both make its tables spoil each other's."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with one_line_errors(uri):
                client_for(uri).search_experiments(max_results=1)
    except OSError as error:
        raise UserError(
            f"tracking store {shown(uri)}: cannot be written ({error.strerror}): set MLFLOW_TRACKING_URI to another place"
        ) from error
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's and alembic's
        raise UserError(f"tracking store {shown(uri)}: not a usable MLflow database ({one_line(error)}): move the file away") from error


def _probe_server(uri: str) -> None:
    client_for(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/search",
            "GET",
            params={"max_results": 1},
            max_retries=0,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            raise_on_status=False,
        )
    except (MlflowException, OSError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(f"tracking server {shown(uri)} cannot be reached ({reason}): start it, or correct MLFLOW_TRACKING_URI") from error
    if answer.status_code in (401, 403):
        raise UserError(
            f"tracking server {shown(uri)} refuses us (HTTP {answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; a server behind a name needs it in --allowed-hosts"
        )
    if answer.status_code != 200:
        raise UserError(
            f"tracking server {shown(uri)} answers HTTP {answer.status_code}: is this an MLflow server? Check MLFLOW_TRACKING_URI"
        )


def _check_driver(uri: str) -> None:
    """Raise UserError where the Python package is missing with which SQLAlchemy speaks to such a database."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        module = error.name or one_line(error)
        raise UserError(
            f"tracking store {shown(uri)}: its driver, the Python module {module}, is not installed: `pip install "
            f"{DRIVERS.get(module, module)}` here and on every node, or set MLFLOW_TRACKING_URI to an MLflow server's http://..."
        ) from error
    except (SQLAlchemyError, ValueError) as error:
        raise UserError(
            f"tracking store {shown(uri)}: no database that SQLAlchemy knows ({one_line(error)}): correct MLFLOW_TRACKING_URI"
        ) from error


def _probe_port(uri: str) -> None:
    parts = urllib.parse.urlsplit(uri)
    default = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}.get(parts.scheme.split("+")[0])
    address = (parts.hostname or "localhost", parts.port or default)
    try:
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"tracking store {shown(uri)} cannot be reached ({one_line(error)}): start it, or correct MLFLOW_TRACKING_URI"
        ) from error
