"""A small cluster's Services and slices, as the informers would deliver them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.dns.records import Names


def service(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def slice_of(
    owner: str, entries: Sequence[dict[str, Any]], *, name: str = "", kind: str = "IPv4"
) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": owner}
    return {
        "metadata": {"name": name or f"{owner}-1", "namespace": "default", "labels": labels},
        "addressType": kind,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(entries),
    }


def entry(address: str, hostname: str | None = None, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "hostname": hostname, "conditions": conditions}


def small() -> Names:
    """web (ClusterIP, dual stack), db (headless: db-0 and a nameless one), far and near (ExternalName)."""
    names = Names()
    for namespace in ("default", "empty"):
        names.namespace_event("ADDED", {"metadata": {"name": namespace}})
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    web = service("web", clusterIP="10.96.0.20", clusterIPs=["10.96.0.20", "fd00:0::14"], ports=ports)
    names.service_event("ADDED", web)
    names.slice_event("ADDED", slice_of("web", [entry("10.244.0.9", "w")]))
    names.service_event("ADDED", service("db", clusterIP="None", ports=[{"name": "http", "port": 80}]))
    names.slice_event("ADDED", slice_of("db", [entry("10.244.0.5", "db-0"), entry("10.244.0.6")]))
    names.slice_event("ADDED", slice_of("db", [entry("fd00::5", "db-0")], name="db-6", kind="IPv6"))
    names.service_event("ADDED", service("far", type="ExternalName", externalName="Example.ORG."))
    near = service("near", type="ExternalName", externalName="web.default.svc.cluster.local")
    names.service_event("ADDED", near)
    return names
