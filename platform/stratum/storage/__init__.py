"""One name for a thing, on this machine or on S3: an absolute path or ``s3://bucket/key``, as a plain string.

    write_bytes("s3://ore/notes.txt", b"...")      read_bytes(uri)      fetch(uri) -> a local file
    list_files("s3://ore/images", {".png"})        upload_tree(folder, uri)      fetch_tree(uri) -> a local folder

Why boto3 itself and no path library: cloudpathlib decides by modification times whether its copy is still good, which an
object replaced within the same second passes; it lists and copies one file after the other, keeps one client for the life
of the process, forks included, and lets the SDK's exceptions through. What would be left of it is the splitting of
``s3://bucket/key``. boto3 has the rest: retries, timeouts, parallel parts, and conditional reads by ETag.
"""

from stratum.storage.arrow import ray_filesystem
from stratum.storage.client import within
from stratum.storage.errors import DeniedError, MissingError, StorageError, TooLargeError, UnreachableError
from stratum.storage.files import exists, fetch, read_bytes, read_json, read_once, size, write_bytes, write_json
from stratum.storage.names import is_remote, is_synthetic, join, name, parent, relative, resolve, suffix
from stratum.storage.trees import fetch_tree, list_files, remove_tree, upload_file, upload_tree

__all__ = [
    "DeniedError",
    "MissingError",
    "StorageError",
    "TooLargeError",
    "UnreachableError",
    "exists",
    "fetch",
    "fetch_tree",
    "is_remote",
    "is_synthetic",
    "join",
    "list_files",
    "name",
    "parent",
    "ray_filesystem",
    "read_bytes",
    "read_json",
    "read_once",
    "relative",
    "remove_tree",
    "resolve",
    "size",
    "suffix",
    "upload_file",
    "upload_tree",
    "within",
    "write_bytes",
    "write_json",
]
