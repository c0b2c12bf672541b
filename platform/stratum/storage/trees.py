"""Folders by URI: listed, copied and removed as a whole."""

from collections.abc import Collection, Sequence
from pathlib import Path

from stratum.storage import cache, local, s3
from stratum.storage.errors import StorageError
from stratum.storage.files import exists, place
from stratum.storage.names import is_remote, join, relative, split_s3, suffix
from stratum.storage.parallel import in_parallel


def list_files(uri: str, suffixes: Collection[str] | None = None) -> list[str]:
    """All files under a folder, at any depth, as sorted URIs; ``suffixes`` like ``{".png", ".jpg"}`` ignore case.

    Raises:
        StorageError: where there is no such folder, it is a file, or it may not be read.
    """
    uri = place(uri)
    files = [entry.uri for entry in s3.listing(uri)] if is_remote(uri) else local.walk(Path(uri))
    if suffixes is None:
        return files
    wanted = {ending.lower() for ending in suffixes}
    return [file for file in files if suffix(file) in wanted]


def fetch_tree(uri: str) -> Path:
    """A local folder with the content of ``uri``: itself, or a cached copy, which must not be changed.

    Raises:
        StorageError: where there is no such folder, it is a file, or it may not be read.
    """
    uri = place(uri)
    if is_remote(uri):
        return cache.fetch_tree(uri.rstrip("/"))
    local.walk(Path(uri))
    return Path(uri)


def upload_tree(folder: Path, uri: str, *, last: Sequence[str] = ()) -> list[str]:
    """Copy all files of a local folder to ``uri`` and return the URIs written.

    ``last`` names files, relative to the folder, that make the tree complete, such as ``("model.json",)``. An older one at
    ``uri`` is removed before anything else is written, and the new one comes after all others: a reader that looks for it
    first never takes half a tree for a whole one.

    Raises:
        StorageError: where the folder is missing or holds no such file, or where ``uri`` cannot be written.
    """
    uri = place(uri).rstrip("/")
    files = {relative(path, str(folder.absolute())): Path(path) for path in local.walk(folder.absolute())}
    if missing := [name for name in last if name not in files]:
        raise StorageError(f"{folder}: holds no {missing[0]}; the folder is not complete")
    if not is_remote(uri) and Path(uri) == folder.absolute():
        return list_files(uri)
    for name in reversed(last):
        remove_tree(join(uri, name))
    in_parallel(lambda name: _upload(files[name], join(uri, name)), [name for name in files if name not in last])
    for name in last:
        _upload(files[name], join(uri, name))
    return [join(uri, name) for name in files]


def upload_file(path: Path, uri: str) -> None:
    """Copy a local file to ``uri``; it appears whole or not at all.

    Raises:
        StorageError: where the file cannot be read or ``uri`` not written.
    """
    _upload(path, place(uri))


def remove_tree(uri: str) -> None:
    """Remove a file, or a folder with all it holds; nothing happens where there is none.

    Raises:
        StorageError: where it may not be removed, and for a whole bucket or the root of the file system.
    """
    uri = place(uri).rstrip("/")
    if not uri or (is_remote(uri) and not split_s3(uri)[1]):
        raise StorageError(f"{uri or '/'}: this is everything there is; name a folder in it")
    if not is_remote(uri):
        local.remove(Path(uri))
    elif exists(uri):
        s3.delete([uri, *(entry.uri for entry in s3.everything(uri))])


def _upload(path: Path, uri: str) -> None:
    if is_remote(uri):
        s3.upload(path, uri)
    else:
        local.copy(path, Path(uri))
