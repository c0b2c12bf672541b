"""The manifests, rendered: known fields only, names that lead somewhere, no pod that anybody may reach."""

import copy
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

_spec = importlib.util.spec_from_file_location("kuberay_fields", Path(__file__).with_name("kuberay.py"))
assert _spec is not None
assert _spec.loader is not None
kuberay = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kuberay)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
VERSION = "1.33"
OVERLAYS = ("local", "production")
MONITORS = {"ServiceMonitor", "PodMonitor"}
GIVEN = {
    "serve-tls",
    "mlflow-tls",
    "ray-auth",
    "mlflow",
    "serve-keys",
    "gcs-store",
    "s3-keys",
    "s3-identities",
}  # secrets that docs/operations.md makes


@cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """All resources of an overlay, or of the base where the name is empty."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize, is not installed")
    folder = FOLDER / "overlays" / overlay if overlay else FOLDER / "base"
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def assert_keeps_schema(resource: dict[str, Any]) -> None:
    """Raises where a resource has fields that its kind has not."""
    if resource["apiVersion"] == "ray.io/v1":
        for group in kuberay.groups(resource):
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
            kubernetes_validate.validate(pod, VERSION, strict=True)
    elif resource["kind"] in MONITORS:
        assert resource["spec"].keys() <= {"selector", "endpoints", "podMetricsEndpoints"}
    else:
        kubernetes_validate.validate(resource, VERSION, strict=True)


def pods(resources: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Every pod template."""
    found = []
    for resource in resources:
        if resource["apiVersion"] == "ray.io/v1":
            found += [group["template"] for group in kuberay.groups(resource)]
        elif resource["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            found.append(resource["spec"]["template"])
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_keeps_its_schema(overlay: str) -> None:
    resources = rendered(overlay)
    assert resources
    for resource in resources:
        assert_keeps_schema(resource)


def test_a_wrong_field_is_seen() -> None:
    for resource in rendered("production"):
        if resource["kind"] in ("Deployment", "RayService"):
            wrong = copy.deepcopy(resource)
            template = pods((wrong,))[0]
            template["spec"]["containers"][0]["imagee"] = "x"
            with pytest.raises(kubernetes_validate.ValidationError):
                assert_keeps_schema(wrong)
            wrong = copy.deepcopy(resource)
            wrong["spec"]["replicaz"] = 1
            with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
                assert_keeps_schema(wrong)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_name_exists(overlay: str) -> None:
    resources = rendered(overlay)
    named = {(one["kind"], one["metadata"]["name"]) for one in resources}
    for pod in pods(resources):
        spec = pod["spec"]
        assert "serviceAccountName" not in spec or ("ServiceAccount", spec["serviceAccountName"]) in named
        for reference, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            for found in re.findall(rf"'{reference}': {{'name': '([\w-]+)'", str(spec)):
                assert found in GIVEN if kind == "Secret" else (kind, found) in named, found
        assert set(re.findall(r"'secretKeyRef': {'key': '[\w-]+', 'name': '([\w-]+)'", str(spec))) <= GIVEN
        for container in spec["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            claimed = {one["metadata"]["name"] for r in resources for one in r.get("spec", {}).get("volumeClaimTemplates", [])}
            assert mounted <= {volume["name"] for volume in spec.get("volumes", [])} | claimed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_of_ours_runs_as_a_plain_user_behind_a_policy(overlay: str) -> None:
    resources = rendered(overlay)
    policies = [one["spec"] for one in resources if one["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies
    roles = str([policy["podSelector"] for policy in policies])
    for pod in pods(resources):
        assert f"'{pod['metadata']['labels']['stratum/role']}'" in roles
        if "stratum:" in pod["spec"]["containers"][0]["image"]:
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            assert pod["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_service_puts_its_address_into_a_pods_environment(overlay: str) -> None:
    # That of a service named mlflow would be MLFLOW_PORT=tcp://..., which MLflow's start script reads.
    assert [pod["metadata"]["labels"] for pod in pods(rendered(overlay)) if pod["spec"].get("enableServiceLinks") is not False] == []


def ray_pods(resources: tuple[dict[str, Any], ...]) -> list[tuple[dict[str, str], int]]:
    """The labels of Ray's pods, with those that KubeRay adds, and how many there are at least."""
    found = []
    for one in (resource for resource in resources if resource["apiVersion"] == "ray.io/v1"):
        for group in kuberay.groups(one):
            kind, least = ("worker", group["minReplicas"]) if "groupName" in group else ("head", 1)
            found.append(({**group["template"]["metadata"]["labels"], "ray.io/node-type": kind}, least))
    return found


def test_prometheus_asks_each_of_rays_pods_once() -> None:
    resources = rendered("production")
    monitors = {one["kind"]: one["spec"] for one in resources if one["kind"] in MONITORS}
    head = {"ray.io/node-type": "head", "ray.io/identifier": "x"}
    services = [
        {**head, "ray.io/cluster": "serve-x"},
        {**head, "ray.io/originated-from-crd": "RayService"},
    ]  # KubeRay makes both of one head
    assert [selects(monitors["ServiceMonitor"]["selector"], labels) for labels in services] == [True, False]
    for labels, _ in ray_pods(resources):
        assert selects(monitors["PodMonitor"]["selector"], labels) == (labels["ray.io/node-type"] == "worker")


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector of Kubernetes selects these labels."""
    assert {one["operator"] for one in selector.get("matchExpressions", [])} <= {"Exists", "In"}
    kept = all(
        one["key"] in labels and labels[one["key"]] in one.get("values", labels.values()) for one in selector.get("matchExpressions", [])
    )
    return kept and selector.get("matchLabels", {}).items() <= labels.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_is_reached(overlay: str) -> None:
    resources = rendered(overlay)
    (service,) = [one for one in resources if one["kind"] == "RayService"]
    name = f"{service['metadata']['name']}-serve-svc"  # as KubeRay calls it
    docs = (ROOT / "docs" / "operations.md").read_text()
    assert f"port-forward service/{name} 8000:8000" in docs
    made = {one["metadata"]["name"] for one in resources if one["kind"] == "Service"} | {name}
    ingresses = [one["spec"] for one in resources if one["kind"] == "Ingress"]
    assert len(ingresses) == (2 if overlay == "production" else 0)
    admitted = {port["port"] for one in resources if one["kind"] == "NetworkPolicy" for port in ports_of_ingress(one["spec"])}
    for spec in ingresses:
        (rule,) = spec["rules"]
        assert spec["tls"][0]["hosts"] == [rule["host"]]
        (path,) = rule["http"]["paths"]
        assert path["backend"]["service"]["name"] in made
        assert path["backend"]["service"]["port"]["number"] in admitted


def ports_of_ingress(policy: dict[str, Any]) -> list[dict[str, Any]]:
    """The ports that a policy opens to the ingress's namespace."""
    return [port for rule in policy.get("ingress", []) if "metadata.name': 'ingress'" in str(rule["from"]) for port in rule["ports"]]


def test_the_docs_pod_that_makes_the_bucket_reaches_the_store() -> None:
    (command,) = re.findall(r"kubectl --namespace stratum run bucket .*", (ROOT / "docs" / "operations.md").read_text())
    (role,) = re.findall(r"--labels stratum/role=(\w+)", command)
    (policy,) = [one["spec"] for one in rendered("local") if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "stores"]
    assert any(selects(peer["podSelector"], {"stratum/role": role}) for rule in policy["ingress"] for peer in rule["from"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_drain_is_blocked_for_ever(overlay: str) -> None:
    resources = rendered(overlay)
    others = [
        (one["spec"]["template"]["metadata"]["labels"], one["spec"]["replicas"])
        for one in resources
        if one["kind"] in ("Deployment", "StatefulSet")
    ]
    for budget in (one["spec"] for one in resources if one["kind"] == "PodDisruptionBudget"):
        guarded = [
            least for labels, least in [*ray_pods(resources), *others] if budget["selector"]["matchLabels"].items() <= labels.items()
        ]
        assert guarded, "it guards nothing"
        assert min(guarded) > budget["minAvailable"]  # not maxUnavailable, which is no number of pods where a RayCluster owns them


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_asks_for_a_token_and_nobody_outside_reaches_the_dashboard(overlay: str) -> None:
    import ray

    resources = rendered(overlay)
    clusters = [kuberay.cluster_of(one) for one in resources if one["apiVersion"] == "ray.io/v1"]
    assert len(clusters) == 3
    for cluster in clusters:
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-auth"}
        assert cluster["rayVersion"] == ray.__version__
    for policy in (one for one in resources if one["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            if {"port": 8265} in rule.get("ports", []):
                assert "kuberay" in str(rule["from"])


def test_the_image_of_production_is_set_everywhere() -> None:
    images = {container["image"] for pod in pods(rendered("production")) for container in pod["spec"]["containers"]}
    assert {image for image in images if "stratum" in image} == {"REGISTRY/stratum:0.1.0"}


def test_gpu_workers_bear_spot_machines_and_scale_from_nothing() -> None:
    groups = [g for one in rendered("production") if one["kind"] in ("RayCluster", "RayJob") for g in list(kuberay.groups(one))[1:]]
    gpus = [g for g in groups if "nvidia.com/gpu" in g["template"]["spec"]["containers"][0]["resources"]["limits"]]
    assert len(gpus) == 2
    for group in gpus:
        assert group["minReplicas"] == 0
        assert {"stratum/spot", "nvidia.com/gpu"} <= {one["key"] for one in group["template"]["spec"]["tolerations"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_that_are_told_to_go_have_time_for_what_they_do(overlay: str) -> None:
    import train

    from stratum_serve.config import Limits

    resources = rendered(overlay)
    (settings,) = [one["data"] for one in resources if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "settings"]
    drain = float(settings["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drain >= max(Limits().seconds, train.Args.grace_s) + 20  # of notice: Serve and Ray Train look every few seconds
    for one in (resource for resource in resources if resource["apiVersion"] == "ray.io/v1"):
        for group in kuberay.groups(one):
            assert {"configMapRef": {"name": "settings"}} in group["template"]["spec"]["containers"][0]["envFrom"]
            assert drain + 10 <= group["template"]["spec"]["terminationGracePeriodSeconds"] < 120  # when a spot machine goes


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_object_store_fits_into_its_memory(overlay: str) -> None:
    for one in (resource for resource in rendered(overlay) if resource["apiVersion"] == "ray.io/v1"):
        for group in kuberay.groups(one):
            store, spec = int(group["rayStartParams"]["object-store-memory"]), group["template"]["spec"]
            (shm,) = [volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if volume["name"] == "shm"]
            for room in (shm, spec["containers"][0]["resources"]["limits"]["memory"]):
                assert store <= float(room.removesuffix("Gi")) * 2**30 / 2  # torch's data loaders and the models need room too


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_fits_onto_the_workers_that_there_are(overlay: str) -> None:
    (service,) = [one for one in rendered(overlay) if one["kind"] == "RayService"]
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True  # no replica runs there, and it may be away
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (_, workers) = kuberay.groups(service)
    each = float(workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    for end in ("min", "max"):
        wanted = sum(application["args"][part][f"{end}_replicas"] * application["args"][part]["cpus"] for part in ("scaling", "ingress"))
        assert wanted <= each * workers[f"{end}Replicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_served_is_a_serve_configuration(overlay: str) -> None:
    (service,) = [one for one in rendered(overlay) if one["kind"] == "RayService"]
    schema = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    port = schema.http_options.port
    workers = list(kuberay.groups(service))[1]["template"]["spec"]
    assert port in {one["containerPort"] for one in workers["containers"][0]["ports"]}
    (application,) = schema.applications
    mounts = {one["name"]: one["mountPath"] for one in workers["containers"][0]["volumeMounts"]}
    assert application.args["keys_file"].startswith(mounts["keys"] + "/")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_jobs_flags_exist(overlay: str) -> None:
    import tune_losnet
    import tyro

    (job,) = [one for one in rendered(overlay) if one["kind"] == "RayJob"]
    python, script, *flags = job["spec"]["entrypoint"].split()
    assert (python, script) == ("python", "/app/jobs/tune_losnet.py")
    args = tyro.cli(tune_losnet.Args, args=flags)
    assert args.storage == "s3://stratum/runs"
    (_, workers) = kuberay.groups(job)
    assert args.max_concurrent == workers["maxReplicas"]  # there are none when the sweep begins, so that it cannot go by their number


def test_the_docs_flags_exist() -> None:
    import importlib

    import tyro

    commands = re.findall(r"python jobs/(\w+)\.py (.*)", (ROOT / "docs" / "operations.md").read_text())
    assert {"train", "tune_losnet", "promote", "prune"} <= {job for job, _ in commands}
    for job, flags in commands:
        tyro.cli(importlib.import_module(job).Args, args=flags.partition(" #")[0].split())
    (limits,) = {flags[-1] for job, flags in commands if "--gpu --max-concurrent" in flags}
    (train,) = [one for one in rendered("production") if one["kind"] == "RayCluster"]
    assert limits == str(next(group for group in kuberay.groups(train) if group.get("groupName") == "gpu-spot")["maxReplicas"])
