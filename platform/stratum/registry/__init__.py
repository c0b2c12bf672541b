"""Model packages in the MLflow registry: stored with their run, fetched by any name they have, promoted by their figures."""

from stratum.registry.packages import NotRegisteredError, RegisteredVersion, fetch_package, find_version, log_package
from stratum.registry.promotion import Promotion, promote

__all__ = ["NotRegisteredError", "Promotion", "RegisteredVersion", "fetch_package", "find_version", "log_package", "promote"]
