"""What kind of Ray this is: a cluster that may grow, or one of this machine's own, where what is missing never comes."""

import os

LOCAL = "STRATUM_LOCAL_RAY"  # "1" in the driver and the workers of a Ray that a job started for itself


def ray_is_local() -> bool:
    """Whether Ray is this machine's own. Workers of such a Ray have a ``RAY_ADDRESS`` too, so that alone does not tell."""
    return os.environ.get(LOCAL) == "1" or os.environ.get("RAY_ADDRESS", "local") in ("", "local")
