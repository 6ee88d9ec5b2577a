from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.endpointslice_mirroring import mirrored, slices

SERVICE = {"metadata": {"name": "s", "namespace": "d"}, "spec": {"ports": [{"port": 80}]}}


def endpoints(*subsets: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s", "namespace": "d", "uid": "u", **meta}, "subsets": list(subsets)}


@pytest.mark.parametrize(
    ("found", "service", "expected"),
    [
        (endpoints(), SERVICE, True),
        (None, SERVICE, False),
        (endpoints(), None, False),
        (endpoints(), {**SERVICE, "spec": {"selector": {"a": "b"}}}, False),
        (endpoints(labels={"endpointslice.kubernetes.io/skip-mirror": "true"}), SERVICE, False),
        (endpoints(annotations={"control-plane.alpha.kubernetes.io/leader": "{}"}), SERVICE, False),
        (endpoints(deletionTimestamp="2026-01-01T00:00:00Z"), SERVICE, False),
    ],
)
def test_what_is_mirrored(found: Any, service: Any, expected: bool) -> None:
    assert mirrored(found, service) is expected


def test_an_ipv4_address_is_one_in_ipv6_clothes_too() -> None:
    (four,) = slices(endpoints({"addresses": [{"ip": "::ffff:192.0.2.1"}], "ports": [{"port": 1}]}))
    assert (four["addressType"], four["endpoints"][0]["addresses"]) == ("IPv4", ["192.0.2.1"])


def test_a_subset_becomes_a_slice_for_each_family() -> None:
    subset = {
        "addresses": [{"ip": "192.0.2.1", "hostname": "h"}, {"ip": "fd00::1"}],
        "notReadyAddresses": [{"ip": "192.0.2.2", "nodeName": "n"}],
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
    }
    four, six = slices(endpoints(subset, labels={"mine": "yes"}))
    assert four["addressType"] == "IPv4" and six["addressType"] == "IPv6"
    assert four["endpoints"] == [
        {"addresses": ["192.0.2.1"], "conditions": {"ready": True}, "hostname": "h"},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": False}, "nodeName": "n"},
    ]
    assert four["ports"] == [{"name": "web", "port": 8080, "protocol": "TCP"}]
    assert four["metadata"]["labels"] == {
        "mine": "yes",
        "kubernetes.io/service-name": "s",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    }
    assert four["metadata"]["ownerReferences"][0]["kind"] == "Endpoints"
    assert four["metadata"]["name"] != six["metadata"]["name"]


def test_a_slice_keeps_its_name_while_its_ports_stay() -> None:
    one = {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}
    two = {"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 80}]}
    (before,), (after,) = slices(endpoints(one)), slices(endpoints(two))
    assert before["metadata"]["name"] == after["metadata"]["name"]
    other = {**one, "ports": [{"port": 81}]}
    (third,) = slices(endpoints(other))
    assert third["metadata"]["name"] != before["metadata"]["name"]


def test_a_thousand_addresses_at_most() -> None:
    many = {
        "addresses": [{"ip": f"10.0.{i // 250}.{i % 250 + 1}"} for i in range(1200)],
        "ports": [{"port": 80}],
    }
    (found,) = slices(endpoints(many))
    assert len(found["endpoints"]) == 1000
