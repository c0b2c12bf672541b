"""API keys: only their hashes are kept, in a file of secrets or in ``STRATUM_SERVE_KEYS``.

The file is YAML or JSON, a list of ``{name, sha256, scopes, concurrency}``; a key is revoked by taking its entry out, which running
servers see within seconds. ``python -m stratum_serve.keys NAME`` makes a key and prints its entry. Keys are long and random, so that a
plain SHA-256 of one tells nothing.
"""

import hashlib
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from stratum_models.errors import UserError
from stratum_serve.problems import Problem

Scope = Literal["predict", "batches"]
VARIABLE = "STRATUM_SERVE_KEYS"
LOOK_AGAIN_SECONDS = 2.0
RETRY_SECONDS = 1


class Key(BaseModel):
    """Who may do what, and how much at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = ("predict",)
    concurrency: int = Field(default=0, ge=0, description="Requests under way at once; 0: as many as the server takes.")


class KeyRing:
    """The keys that are valid now, read again when their file changes.

    Raises:
        UserError: the file or the variable cannot be read.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path
        self.open = not (
            path or given_keys()
        )  # whether keys are not spoken of at all, so that everyone may ask; an empty list lets nobody in
        self._looked, self._stamp = time.monotonic(), self._file_stamp()
        self._keys = _read(path)
        self._busy: dict[str, int] = {}

    def check(self, authorization: str | None, scope: Scope | None) -> Key | None:
        """The key behind an ``Authorization`` header, None where none is needed. Raises Problem where it does not do."""
        self._refresh()
        if self.open:
            return None
        if not authorization:
            raise Problem("missing-key", "send an API key as Authorization: Bearer KEY")
        scheme, _, value = authorization.partition(" ")
        key = self._keys.get(hash_key(value.strip())) if scheme.lower() == "bearer" else None
        if key is None:
            raise Problem("wrong-key", "this API key is not known here, or was revoked: ask for another")
        if scope is not None and scope not in key.scopes:
            raise Problem("missing-scope", f"key {key.name!r} has the scopes {', '.join(key.scopes)}, this needs {scope}")
        return key

    def enter(self, key: Key | None) -> None:
        """Count a request of this key. Raises Problem where it has too many under way."""
        if key is None:
            return
        busy = self._busy.get(key.sha256, 0)
        if key.concurrency and busy >= key.concurrency:
            raise Problem("key-busy", f"key {key.name!r} has {busy} requests under way, as many as it may: wait for one", RETRY_SECONDS)
        self._busy[key.sha256] = busy + 1

    def leave(self, key: Key | None) -> None:
        """The request that entered has its answer."""
        if key is not None:
            self._busy[key.sha256] -= 1

    def _refresh(self) -> None:
        now = time.monotonic()
        if not self._path or now - self._looked < LOOK_AGAIN_SECONDS:
            return
        self._looked, stamp = now, self._file_stamp()
        if stamp != self._stamp:
            try:
                self._keys, self._stamp = _read(self._path), stamp
            except UserError:  # half-written, perhaps: those from before hold, and the next look may do
                return

    def _file_stamp(self) -> tuple[int, int] | None:
        try:
            status = Path(self._path).stat() if self._path else None
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size) if status else None


def given_keys() -> str:
    """The text of the variable, empty where it is not set."""
    return os.environ.get(VARIABLE, "").strip()


def hash_key(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(name: str, scopes: Sequence[Scope] = ("predict",), concurrency: int = 0) -> tuple[str, Key]:
    """A key, to be given away, and its entry, to be kept."""
    key = secrets.token_urlsafe(32)
    return key, Key(name=name, sha256=hash_key(key), scopes=tuple(scopes), concurrency=concurrency)


def _read(path: str) -> dict[str, Key]:
    source, text = VARIABLE, given_keys()
    if path:
        source = path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the file of API keys cannot be read ({error}): correct keys_file") from error
    try:
        values: Any = yaml.safe_load(text) or []
        keys = TypeAdapter(tuple[Key, ...]).validate_python(values)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{source}: not a list of name, sha256, scopes, concurrency ({' '.join(str(error).split())[:300]})") from error
    return {key.sha256: key for key in keys}


def main(argv: Sequence[str]) -> int:
    """Print a new key and its entry for the file of secrets."""
    if not 1 <= len(argv) <= 2 or argv[0].startswith("-"):
        print("usage: python -m stratum_serve.keys NAME [predict,batches]", file=sys.stderr)
        return 2
    scopes = tuple(argv[1].split(",")) if len(argv) > 1 else ("predict",)
    try:
        key, entry = new_key(argv[0], scopes)  # type: ignore[arg-type]  # pydantic checks them
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"# the key, shown only now: {key}")
    print(yaml.safe_dump([entry.model_dump(mode="json")], sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
