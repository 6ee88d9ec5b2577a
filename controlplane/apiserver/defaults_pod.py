"""What upstream fills into a pod's spec, wherever one occurs: in a Pod and in the template of a workload.

Clients rely on these being present: kubectl debug dereferences securityContext, the kubelet expects probe
thresholds, and server-side apply needs a port's protocol because it is part of the list's key. The source is
pkg/apis/core/v1/defaults.go and zz_generated.defaults.go of Kubernetes 1.32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubeclient import quantity

Object = dict[str, Any]

_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")
_FILE_MODE_VOLUMES = ("secret", "configMap", "downwardAPI", "projected")
_FILE_MODE = 0o644
_QOS_RESOURCES = ("cpu", "memory")


def containers(spec: Object) -> Iterator[Object]:
    """Every container of a pod spec, of all three lists."""
    for name in _CONTAINER_LISTS:
        yield from spec.get(name) or ()


def apply_pod(pod: Object) -> None:
    """A Pod: the spec's defaults, and what only pods (not templates) get."""
    spec = pod.setdefault("spec", {})
    apply_spec(spec)
    spec.setdefault("enableServiceLinks", True)
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        _requests_from_limits(container)
    status = pod.setdefault("status", {})
    status.setdefault("phase", "Pending")
    status.setdefault("qosClass", qos_class(spec))
    _agree(status, "podIP", "podIPs")
    _agree(status, "hostIP", "hostIPs")


def _agree(status: Object, one: str, every: str) -> None:
    """The first address stands in two places, and readers go by either: the single one decides, as in
    upstream's Convert_v1_PodStatus_To_core_PodStatus, for old kubelets knew no other."""
    listed = status.get(every) or []
    if status.get(one) and (not listed or listed[0].get("ip") != status[one]):
        status[every] = [{"ip": status[one]}]
    elif listed and not status.get(one):
        status[one] = listed[0].get("ip") or ""


def apply_template(template: Object) -> None:
    """A PodTemplateSpec of a Deployment, Job …"""
    template.setdefault("metadata", {})
    apply_spec(template.setdefault("spec", {}))


def apply_spec(spec: Object) -> None:
    """The defaults that a pod and a template share."""
    _text(spec, "restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    _text(spec, "dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    _text(spec, "schedulerName", "default-scheduler")
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for volume in spec.get("volumes") or ():
        _volume(volume)
    for container in containers(spec):
        _container(container)
        if spec.get("hostNetwork"):
            for port in container.get("ports") or ():
                if not port.get("hostPort") and "containerPort" in port:
                    port["hostPort"] = port["containerPort"]


def _text(target: Object, key: str, value: str) -> None:
    """Sets what is absent or empty: Go knows no difference, and templates often render an empty text."""
    if not target.get(key):
        target[key] = value


def _container(container: Object) -> None:
    container.setdefault("resources", {})
    _text(container, "terminationMessagePath", "/dev/termination-log")
    _text(container, "terminationMessagePolicy", "File")
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = pull_policy(container.get("image") or "")
    for port in container.get("ports") or ():
        _text(port, "protocol", "TCP")
    for variable in container.get("env") or ():
        _source(variable.get("valueFrom") or {})
    for name in _PROBES:
        if name in container:
            _probe(container[name])
    for hook in _HOOKS:
        _http_get((container.get("lifecycle") or {}).get(hook) or {})


def pull_policy(image: str) -> str:
    """Always for :latest or no tag at all, else IfNotPresent; a digest counts as a fixed tag."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _probe(probe: Object) -> None:
    _http_get(probe)
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")
    for key, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1)):
        if not probe.get(key):
            probe[key] = value
    if not probe.get("failureThreshold"):
        probe["failureThreshold"] = 3


def _http_get(handler: Object) -> None:
    action = handler.get("httpGet")
    if action is not None:
        action["path"] = action.get("path") or "/"
        action["scheme"] = action.get("scheme") or "HTTP"


def _source(source: Object) -> None:
    """A fieldRef or resourceFieldRef, of a variable or of a downward API file."""
    if "fieldRef" in source:
        _text(source["fieldRef"], "apiVersion", "v1")
    if "resourceFieldRef" in source:
        _text(source["resourceFieldRef"], "divisor", "0")


def _volume(volume: Object) -> None:
    if not any(key != "name" for key in volume):
        volume["emptyDir"] = {}
    for kind in _FILE_MODE_VOLUMES:
        if kind in volume:
            volume[kind].setdefault("defaultMode", _FILE_MODE)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    if "iscsi" in volume:
        _text(volume["iscsi"], "iscsiInterface", "default")
    for item in (volume.get("downwardAPI") or {}).get("items") or ():
        _source(item)
    for source in (volume.get("projected") or {}).get("sources") or ():
        if "serviceAccountToken" in source:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
        for item in (source.get("downwardAPI") or {}).get("items") or ():
            _source(item)
    claim = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
    if claim:
        claim.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    if "image" in volume and not volume["image"].get("pullPolicy"):
        volume["image"]["pullPolicy"] = pull_policy(volume["image"].get("reference") or "")


def _requests_from_limits(container: Object) -> None:
    resources = container["resources"]
    for name, limit in (resources.get("limits") or {}).items():
        resources.setdefault("requests", {}).setdefault(name, limit)


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort, as pkg/apis/core/v1/helper/qos decides it."""
    every = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    if _counted((spec.get("resources") or {}).get("limits")) or _counted(
        (spec.get("resources") or {}).get("requests")
    ):
        every = [spec]  # what the pod asks for as a whole takes the containers' place
    guaranteed = True
    mentioned = False
    for container in every:
        resources = container.get("resources") or {}
        limits = _counted(resources.get("limits"))
        requests = _counted(resources.get("requests"))
        mentioned = mentioned or bool(limits or requests)
        if set(limits) != set(_QOS_RESOURCES) or any(requests.get(n, limits[n]) != limits[n] for n in limits):
            guaranteed = False
    if not mentioned:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _counted(amounts: Object | None) -> dict[str, Any]:
    given = amounts or {}
    values = {name: quantity.parse(str(given[name])) for name in _QOS_RESOURCES if name in given}
    return {name: value for name, value in values.items() if value > 0}
