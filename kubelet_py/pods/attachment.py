"""What a pod asks of its network, as capability arguments of CNI: host ports and bandwidth.

Source: upstream's pkg/util/bandwidth/utils.go for the annotations and their limits, and what runtimes under
the kubelet make of them (a rate alone; the burst is as large as the plugins take).
"""

from __future__ import annotations

from typing import Any

from kubeclient import quantity
from kubelet_py.errors import SandboxError
from kubelet_py.pods.model import Object, containers, init_containers

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
_SMALLEST, _LARGEST = 1_000, 10**15
_BURST = 2**31 - 1  # bits


def capabilities(pod: Object) -> dict[str, Any]:
    """Capability name → argument, without the empty ones. Raises SandboxError on a senseless bandwidth."""
    found = {"portMappings": port_mappings(pod), "bandwidth": bandwidth(pod)}
    return {name: value for name, value in found.items() if value}


def port_mappings(pod: Object) -> list[dict[str, object]]:
    """hostPorts as the portmap plugin's runtime configuration."""
    found: list[dict[str, object]] = []
    for container in [*containers(pod), *init_containers(pod)]:
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                found.append(
                    {
                        "hostPort": port["hostPort"],
                        "containerPort": port["containerPort"],
                        "protocol": port.get("protocol", "TCP").lower(),
                        "hostIP": port.get("hostIP", ""),
                    }
                )
    return found


def bandwidth(pod: Object) -> dict[str, int]:
    """The two annotations as the bandwidth plugin's runtime configuration, in bits (per second)."""
    annotations = pod["metadata"].get("annotations") or {}
    found: dict[str, int] = {}
    for way, annotation in (("ingress", INGRESS), ("egress", EGRESS)):
        if annotation in annotations:
            found |= {f"{way}Rate": _bits(annotation, annotations[annotation]), f"{way}Burst": _BURST}
    return found


def _bits(annotation: str, text: str) -> int:
    try:
        bits = quantity.value(text)
    except quantity.QuantityError as error:
        raise SandboxError(f"could not read annotation {annotation}: {error}") from error
    if bits < _SMALLEST:
        raise SandboxError(f"annotation {annotation}: resource is unreasonably small (< 1kbit)")
    if bits > _LARGEST:
        raise SandboxError(f"annotation {annotation}: resource is unreasonably large (> 1Pbit)")
    return bits
