"""Which pods stand behind a Service, and on which ports. Pure, but for the base class at the end.

Shared by the two controllers that publish the answer: EndpointSlices (what proxies read) and Endpoints (what
older clients read). A Service's target port may be a name, and every pod may give that name another number,
so ports are resolved pod by pod. Source: upstream's endpointslice/utils.go and api/v1/pod/util.go (FindPort).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.controllers.base import Controller, Object, SharedInformers, key_of
from controlplane.controllers.pod_readiness import is_ready
from kubeclient.addresses import read_ip, special
from kubeclient.events import EventRecorder
from kubeclient.resources import PODS, SERVICES
from kubeclient.rest import RestClient

HEADLESS = "service.kubernetes.io/headless"  # the label on what is published for a Service without an address


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """One resolved port; `name` is the Service port's, "" for a Service with a single nameless port."""

    name: str
    number: int
    protocol: str
    app_protocol: str = ""


def followed(service: Object) -> bool:
    """Whether its endpoints are ours to keep: it has a selector and is no alias."""
    spec = service["spec"]
    return bool(spec.get("selector")) and spec.get("type") != "ExternalName"


def headless(service: Object) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def selects(service: Object, labels: Mapping[str, str] | None) -> bool:
    selector: Mapping[str, str] = service["spec"].get("selector") or {}
    return bool(selector) and selector.items() <= (labels or {}).items()


def addresses(pod: Object, family: str) -> list[str]:
    """The pod's address of one family ("IPv4" or "IPv6"), if any; none before its network is up. What is no
    address, or nobody's (loopback …), is left out: the API would refuse the slice as a whole."""
    status = pod.get("status") or {}
    found = [entry["ip"] for entry in status.get("podIPs") or [] if entry.get("ip")]
    if not found and status.get("podIP"):
        found = [status["podIP"]]
    read = [address for address in map(read_ip, found) if address is not None and not special(address)]
    return [str(address) for address in read if f"IPv{address.version}" == family][:1]


def finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def ports_of(service: Object, pod: Object) -> tuple[Port, ...]:
    """The Service's ports as this pod serves them; a named port that the pod does not have is left out."""
    found = []
    for port in service["spec"].get("ports") or []:
        protocol = port.get("protocol", "TCP")
        target = port.get("targetPort") or port["port"]
        number = target if isinstance(target, int) else _named_port(pod, target, protocol)
        if number:
            found.append(Port(port.get("name", ""), int(number), protocol, port.get("appProtocol", "")))
    return tuple(found)


def _named_port(pod: Object, name: str, protocol: str) -> int | None:
    spec = pod["spec"]
    # Restartable init containers (sidecars) serve as long as the others do.
    sidecars = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    for container in [*spec["containers"], *sidecars]:
        for port in container.get("ports") or []:
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None


def hostname(service: Object, pod: Object) -> str:
    """The pod's own name below a headless Service, if it asked for one."""
    spec = pod["spec"]
    return str(spec["hostname"]) if spec.get("hostname") and _subdomain(service, pod) else ""


def _subdomain(service: Object, pod: Object) -> bool:
    return bool(pod["spec"].get("subdomain") == service["metadata"]["name"])


def target_reference(pod: Object) -> Object:
    metadata = pod["metadata"]
    return {
        "kind": "Pod",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }


def _what_counts(pod: Object) -> tuple[Any, ...]:
    """What an endpoint says of its pod: other changes (logs, restarts, annotations) need no pass."""
    metadata, status, spec = pod["metadata"], pod.get("status") or {}, pod["spec"]
    return (
        metadata["uid"],
        metadata.get("labels"),
        bool(metadata.get("deletionTimestamp")),
        is_ready(pod),
        status.get("podIPs") or status.get("podIP"),
        finished(pod),
        spec.get("nodeName"),
    )


class ServiceFollower(Controller):
    """Queues a Service when it, or a pod that it selects or selected, changes in a way that counts."""

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._services = informers.of(SERVICES, self.enqueue)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "MODIFIED" and old is not None and _what_counts(new) == _what_counts(old):
            return
        versions = [new] if old is None else [new, old]
        for service in self._services.list():
            if service["metadata"]["namespace"] == new["metadata"]["namespace"] and any(
                selects(service, pod["metadata"].get("labels")) for pod in versions
            ):
                self.queue.add(key_of(service))

    def _selected(self, service: Object) -> list[Object]:
        namespace = service["metadata"]["namespace"]
        return [
            pod
            for pod in self._pods.list()
            if pod["metadata"]["namespace"] == namespace
            and not finished(pod)
            and selects(service, pod["metadata"].get("labels"))
        ]
