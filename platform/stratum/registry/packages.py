"""Model packages into MLflow and back.

A package is stored as the data of a pyfunc model, ``<run>/package/data/package``, so that MLflow's own tools can load and serve it;
what comes back is the package itself.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

import stratum
import stratum_models
from stratum import storage
from stratum.tracking.store import check_reachable, client_for, one_line, one_line_errors, shown, tracking_uri
from stratum_models.errors import UserError
from stratum_models.package import MANIFEST_FILE, WEIGHTS_FILE, Manifest, load_manifest, manifest_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ARTIFACT = "package"
LOADER = "stratum.registry.pyfunc"
REQUIREMENTS = (  # of what a model's own code imports; MLflow adds itself
    *("torch", "torchvision", "timm", "segmentation-models-pytorch", "safetensors", "numpy", "scipy"),
    *("pillow", "tifffile", "pycocotools", "boto3", "platformdirs", "psutil"),
)
SHA_TAG, MANIFEST_TAG = "weights_sha256", "manifest_sha256"
SETTING_TAG = "cost_setting"  # what time and memory were measured with


def log_package(run_id: str, folder: Path, register_as: str | None = None, *, uri: str | None = None) -> str:
    """Store a package with its run and, where a name is given, register it as that model's next version.

    Returns ``models:/name/version``, or ``runs:/id/package`` without a name. Doing it again with the same weights makes no other version:
    the one there is gets the figures of the new manifest, which took the place of the old one in the run.
    Raises UserError for a damaged package, or where the store cannot be reached.
    """
    manifest = verified(folder)
    uri = uri or tracking_uri()
    client = client_for(uri)
    with one_line_errors(uri), tempfile.TemporaryDirectory(prefix="stratum-") as scratch:
        client.log_artifacts(run_id, str(_as_pyfunc(folder, Path(scratch))), ARTIFACT)
        if register_as is None:
            return f"runs:/{run_id}/{ARTIFACT}"
        return f"models:/{register_as}/{_register(client, run_id, register_as, _version_tags(folder, manifest))}"


def fetch_package(uri: str, sha256: str = "") -> Path:
    """A local folder with the package at ``models:/name@alias``, ``models:/name/3``, ``runs:/id/package``, a folder or ``s3://...``.

    What is fetched is cached by the hash of its manifest; where a version's hash is known and it is here, the store need not be there.
    Raises UserError naming what is missing and what there is.
    """
    if uri.startswith("models:/"):
        return _cached({MANIFEST_TAG: sha256}) or _fetch_version(uri)
    if uri.startswith("runs:/"):
        store = tracking_uri()
        run_id, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
        check_reachable(store)
        return _download(f"{_artifacts_of(run_id, store, uri)}/{path}", store, uri)
    return _package_in(storage.fetch_tree(storage.resolve(uri)), uri)


def verified(folder: Path) -> Manifest:
    """The manifest of a package whose weights are those it names. Raises UserError where they are not."""
    manifest = load_manifest(folder)
    path = folder / WEIGHTS_FILE
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): export or fetch the package again") from error
    if found != manifest.weights_sha256:
        raise UserError(f"{path}: damaged, its sha256 is not the one in {MANIFEST_FILE}: export or fetch the package again")
    return manifest


def version_figures(manifest: Manifest) -> dict[str, float]:
    """Metrics and costs of a package under the names they have in runs: ``val/...`` and ``cost/...``."""
    cost = {key if key.startswith("cost/") else f"cost/{key}": value for key, value in manifest.cost.items()}
    return {**manifest.metrics, **cost}


def known_models(client: "MlflowClient") -> str:
    """The names of the registered models, for messages."""
    return ", ".join(model.name for model in client.search_registered_models(max_results=50)) or "none"


def _as_pyfunc(folder: Path, scratch: Path) -> Path:
    """The package wrapped as MLflow's pyfunc flavour, which names the module that loads it: no pickle here either.

    Our own code goes with it, so that a server needs nothing but what the requirements name.
    """
    import mlflow.pyfunc

    package = scratch / ARTIFACT
    shutil.copytree(folder, package)
    wrapped = scratch / "wrapped"
    mlflow.pyfunc.save_model(
        str(wrapped),
        loader_module=LOADER,
        data_path=str(package),
        code_paths=[str(Path(module.__file__ or "").parent) for module in (stratum, stratum_models)],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
    )
    return wrapped


def _register(client: "MlflowClient", run_id: str, name: str, tags: Mapping[str, str]) -> str:
    """The version of ``name`` that holds this run's package, with these tags; made where there is none."""
    from mlflow.exceptions import MlflowException

    if not name or any(letter in name for letter in "/:'\""):
        raise UserError(f"model name {name!r}: leave out slashes, colons and quotes")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for found in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if found.tags.get(SHA_TAG) == tags[SHA_TAG]:
            for key, value in tags.items() - found.tags.items():
                client.set_model_version_tag(name, found.version, key, value)
            return str(found.version)
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
    return str(client.create_model_version(name, source, run_id=run_id, tags=dict(tags)).version)


def _version_tags(folder: Path, manifest: Manifest) -> dict[str, str]:
    figures = {key: repr(float(value)) for key, value in version_figures(manifest).items()}
    return {
        **figures,
        "preset": manifest.preset,
        "task": manifest.task,
        "classes": ",".join(manifest.classes),
        "data_fingerprint": manifest.data_fingerprint,
        "score_threshold": repr(manifest.score_threshold),
        SETTING_TAG: ", ".join(f"{name} {value}" for name, value in sorted(manifest.cost_setting.items())),
        SHA_TAG: manifest.weights_sha256,
        MANIFEST_TAG: manifest_sha256(folder),
    }


def _artifacts_of(run_id: str, store: str, uri: str) -> str:
    """Where a run keeps its artifacts."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client_for(store).get_run(run_id).info.artifact_uri)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"{uri}: there is no such run in {shown(store)}: check the id and MLFLOW_TRACKING_URI") from error
        raise UserError(f"{uri}: {shown(store)} does not answer: {one_line(error)}") from error


class NotRegisteredError(UserError):
    """The registry has no such model; ``model_known`` says whether it is only the version or alias that it lacks."""

    def __init__(self, message: str, *, model_known: bool = False) -> None:
        super().__init__(message)
        self.model_known = model_known


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version of a registered model; one of an earlier release has no ``manifest_sha256``."""

    name: str
    version: str
    aliases: tuple[str, ...]
    weights_sha256: str
    manifest_sha256: str

    @property
    def uri(self) -> str:
        """What :func:`fetch_package` takes."""
        return f"models:/{self.name}/{self.version}"


def find_version(uri: str) -> RegisteredVersion:
    """The version behind ``models:/name@alias`` or ``models:/name/3``, without fetching it.

    Raises:
        NotRegisteredError: there is none.
        UserError: the store cannot be reached.
    """
    store = tracking_uri()
    check_reachable(store)
    with one_line_errors(store):
        found = _version_of(client_for(store), uri)
        aliases = tuple(sorted(found.aliases))
    return RegisteredVersion(
        name=found.name,
        version=str(found.version),
        aliases=aliases,
        weights_sha256=found.tags.get(SHA_TAG, ""),
        manifest_sha256=found.tags.get(MANIFEST_TAG, ""),
    )


def _fetch_version(uri: str) -> Path:
    store = tracking_uri()
    check_reachable(store)
    client = client_for(store)
    with one_line_errors(store):
        found = _version_of(client, uri)
        cached = _cached(found.tags)
        if cached is not None:
            return cached
        source = client.get_model_version_download_uri(found.name, str(found.version))
    return _download(source, store, uri)


def _version_of(client: "MlflowClient", uri: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    rest = uri.removeprefix("models:/").strip("/")
    name, at, alias = rest.partition("@")
    name, _, number = name.partition("/")
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        if number.isdigit():
            return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        there, known = _what_there_is(client, name)
        raise NotRegisteredError(
            f"{uri}: not registered ({there}): correct the name, or promote a version first", model_known=known
        ) from error
    raise UserError(f"{uri}: names no version: write models:/{name}@champion or models:/{name}/1")


def _what_there_is(client: "MlflowClient", name: str) -> tuple[str, bool]:
    """What could have been meant, and whether there is a model of the name."""
    versions = client.search_model_versions(f"name = '{name}'") if "'" not in name else []
    if not versions:
        return f"known models: {known_models(client)}", False
    aliases: Mapping[str, str] = client.get_registered_model(name).aliases
    numbers = ", ".join(sorted((str(found.version) for found in versions), key=int))
    return f"{name} has versions {numbers} and aliases {', '.join(aliases) or 'none'}", True


def _cache_folder() -> Path:
    return platformdirs.user_cache_path("stratum") / "packages"


def _cached(tags: Mapping[str, str]) -> Path | None:
    """The cached package that a version's tags name, if it is whole."""
    sha = tags.get(MANIFEST_TAG, "")
    return _cache_folder() / sha if sha and _whole(sha) else None


def _download(source: str, store: str, uri: str) -> Path:
    """Download an artifact folder of the store and put the package in it into the cache."""
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    cache = _cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        try:
            local = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=store)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"{uri}: cannot be downloaded from {shown(store)} ({one_line(error)}): check what the run has stored"
            ) from error
        package = _package_in(Path(local), uri)
        verified(package)
        folder = cache / manifest_sha256(package)
        if folder.exists() and not _whole(folder.name):
            folder.rename(Path(scratch) / "replaced")
        try:
            package.rename(folder)
        except OSError:  # another process was quicker, with the same content
            verified(folder)
    return folder


def _whole(sha: str) -> bool:
    """Whether the package with a manifest of this hash is in the cache, undamaged."""
    folder = _cache_folder() / sha
    try:
        verified(folder)
        return manifest_sha256(folder) == sha
    except UserError:
        return False


def _package_in(folder: Path, uri: str) -> Path:
    """The package in a folder: itself, below ``package``, or inside MLflow's wrapping."""
    for candidate in (folder, folder / ARTIFACT, folder / "data" / ARTIFACT, folder / ARTIFACT / "data" / ARTIFACT):
        if (candidate / MANIFEST_FILE).is_file():
            return candidate
    raise UserError(f"{uri}: no model package there: a package is a folder with {MANIFEST_FILE} and {WEIGHTS_FILE}")
