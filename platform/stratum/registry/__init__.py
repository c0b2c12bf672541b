"""Model packages in the MLflow registry: stored with their run, fetched by any name they have, promoted by their figures."""

from stratum.registry.packages import fetch_package, log_package
from stratum.registry.promotion import Promotion, promote

__all__ = ["Promotion", "fetch_package", "log_package", "promote"]
