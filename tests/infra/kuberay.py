"""The fields of KubeRay's resources that may be set, as its API reference of v1.6 lists them, and the pods inside them.

Written from that reference, since the published definitions repeat the whole pod template several times over; pod templates are checked
against Kubernetes' own schema.
"""

from collections.abc import Iterator
from typing import Any

CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "headServiceAnnotations",
    "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas", "resources",
    "scaleStrategy", "suspend", "template",
}  # fmt: skip
AUTOSCALER = {
    "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext", "upscalingMode", "version",
    "volumeMounts",
}  # fmt: skip
JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus", "entrypointNumGpus",
    "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
SERVICE = {
    "excludeHeadPodFromServeSvc", "rayClusterConfig", "rayClusterDeletionDelaySeconds", "serveConfigV2", "serveService", "suspend",
    "upgradeStrategy",
}  # fmt: skip


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    """The cluster's specification inside a RayCluster, RayJob or RayService, whose own fields are checked on the way."""
    spec: dict[str, Any] = resource["spec"]
    if resource["kind"] == "RayCluster":
        return spec
    inner, allowed = ("rayClusterSpec", JOB) if resource["kind"] == "RayJob" else ("rayClusterConfig", SERVICE)
    _only(spec, allowed, resource["kind"])
    cluster: dict[str, Any] = spec[inner]
    return cluster


def groups(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The head's group and those of the workers; raises AssertionError for fields that do not exist or have the wrong type."""
    cluster = cluster_of(resource)
    _only(cluster, CLUSTER, "cluster")
    _only(cluster.get("autoscalerOptions", {}), AUTOSCALER, "autoscalerOptions")
    _only(cluster.get("authOptions", {}), {"mode", "secretName", "enableK8sTokenAuth"}, "authOptions")
    store = cluster.get("gcsFaultToleranceOptions", {})
    _only(store, {"redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace"}, "gcsFaultToleranceOptions")
    _only(cluster["headGroupSpec"], HEAD, "headGroupSpec")
    yield cluster["headGroupSpec"]
    for group in cluster.get("workerGroupSpecs", []):
        _only(group, WORKERS, "workerGroupSpecs")
        assert 0 <= group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"], group["groupName"]
        yield group


def _only(found: dict[str, Any], allowed: set[str], where: str) -> None:
    assert found.keys() <= allowed, f"{where}: {', '.join(sorted(found.keys() - allowed))} is no field of KubeRay"
