from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.endpoints import subsets, truncated
from controlplane.controllers.endpointslice import desired, placed, plan, slice_labels
from controlplane.controllers.service_pods import addresses, ports_of, selects


def service(**spec: Any) -> dict[str, Any]:
    base = {"selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": "http"}], "clusterIP": "10.96.0.9"}
    return {"metadata": {"name": "s", "namespace": "d", "uid": "su"}, "spec": base | spec}


def pod(
    name: str,
    *,
    ready: bool = True,
    port: int = 8080,
    ip: str | None = None,
    ending: bool = False,
    **spec: Any,
) -> dict[str, Any]:
    number = int(name.strip("p") or 0)
    ip = f"10.244.{number // 250}.{number % 250 + 1}" if ip is None else ip
    ports = [{"name": "http", "containerPort": port}]
    return {
        "metadata": {
            "name": name,
            "namespace": "d",
            "uid": "u" + name,
            "labels": {"app": "a"},
            **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if ending else {}),
        },
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": ports}], **spec},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def carried_out(service: dict, pods: list, slices: list | None = None) -> Any:
    return plan(desired(service, pods, {}), slices or [], ["IPv4"], slice_labels(service))


def made(service: dict, todo: Any) -> list[dict[str, Any]]:
    return [
        {
            "metadata": {"name": f"s-{i}", "uid": f"x{i}", "labels": slice_labels(service)},
            "addressType": family,
            "ports": [{"name": p.name, "port": p.number, "protocol": p.protocol} for p in ports],
            "endpoints": contents,
        }
        for i, (family, ports, contents) in enumerate(todo.create)
    ]


def test_an_empty_selector_selects_nothing() -> None:
    assert not selects(service(selector={}), {"app": "a"})
    assert not selects(service(selector=None), {})


@pytest.mark.parametrize(
    ("port", "numbers"),
    [
        ({"port": 80, "targetPort": "http"}, [8080]),
        ({"port": 80, "targetPort": 9}, [9]),
        ({"port": 80}, [80]),
        ({"port": 80, "targetPort": "other"}, []),
        ({"port": 80, "targetPort": "http", "protocol": "UDP"}, []),
    ],
)
def test_target_ports_are_resolved_per_pod(port, numbers) -> None:
    assert [p.number for p in ports_of(service(ports=[port]), pod("p1"))] == numbers


def test_a_named_port_of_a_sidecar_counts() -> None:
    sidecar = {"name": "i", "restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 7}]}
    found = ports_of(service(ports=[{"port": 1, "targetPort": "web"}]), pod("p1", initContainers=[sidecar]))
    assert [p.number for p in found] == [7]


@pytest.mark.parametrize(
    ("ready", "ending", "publish", "conditions"),
    [
        (True, False, False, (True, True, False)),
        (False, False, False, (False, False, False)),
        (True, True, False, (False, True, True)),
        (False, False, True, (True, False, False)),
        (True, True, True, (True, True, True)),
    ],
)
def test_conditions_of_an_endpoint(ready, ending, publish, conditions) -> None:
    todo = carried_out(service(publishNotReadyAddresses=publish), [pod("p1", ready=ready, ending=ending)])
    found = todo.create[0][2][0]["conditions"]
    assert (found["ready"], found["serving"], found["terminating"]) == conditions


def test_traffic_that_prefers_what_is_close_is_told_the_zones_of_ready_pods() -> None:
    """As upstream's trafficdist; the proxy's side is test_hints_keep_traffic_in_the_nodes_zone."""
    pods = [pod("p1"), pod("p2", nodeName="m"), pod("p3", ready=False), pod("p4", nodeName="nowhere")]
    zones = {"n": "z1", "m": "z2", "nowhere": ""}

    def hints(**spec: Any) -> list[Any]:
        (entries,) = desired(service(**spec), pods, zones).values()
        return [entry.get("hints") for entry in entries.values()]

    assert hints() == [None] * 4
    z1, z2 = ({"forZones": [{"name": zone}]} for zone in ("z1", "z2"))
    assert hints(trafficDistribution="PreferClose") == [z1, z2, None, None]
    near = service(trafficDistribution="PreferClose")
    slices = made(near, plan(desired(near, pods, zones), [], ["IPv4"], slice_labels(near)))
    todo = plan(desired(service(), pods, zones), slices, ["IPv4"], slice_labels(near))
    assert [entry.get("hints") for entry in todo.update[0]["endpoints"]] == [None] * 4  # taken back


def test_a_pod_without_an_address_is_not_published() -> None:
    todo = carried_out(service(), [pod("p1", ip="")])
    assert [contents for _, _, contents in todo.create] == [[]]  # the placeholder of an empty Service


@pytest.mark.parametrize(
    ("ip", "four", "six"),
    [
        ("10.0.0.1", ["10.0.0.1"], []),
        ("fd00:0::1", [], ["fd00::1"]),
        ("::ffff:10.0.0.1", ["10.0.0.1"], []),
        ("fd00::1%x\nevil", [], []),
        ("127.0.0.1", [], []),
        ("169.254.169.254", [], []),
        ("::", [], []),
    ],
)
def test_the_addresses_of_a_pod(ip: str, four: list[str], six: list[str]) -> None:
    """In the family that the API counts them to, and never what would have it refuse a whole slice."""
    assert (addresses(pod("p1", ip=ip), "IPv4"), addresses(pod("p1", ip=ip), "IPv6")) == (four, six)


def test_no_slice_holds_more_than_a_hundred() -> None:
    todo = carried_out(service(), [pod(f"p{i}") for i in range(250)])
    assert sorted(len(contents) for _, _, contents in todo.create) == [50, 100, 100]


def test_pods_that_serve_a_name_on_different_numbers_get_slices_of_their_own() -> None:
    todo = carried_out(service(), [pod("p1", port=1), pod("p2", port=2)])
    assert sorted(ports[0].number for _, ports, _ in todo.create) == [1, 2]


def test_nothing_changed_means_nothing_to_do() -> None:
    pods = [pod(f"p{i}") for i in range(130)]
    slices = made(service(), carried_out(service(), pods))
    todo = carried_out(service(), pods, slices)
    assert (todo.create, todo.update, todo.delete) == ((), (), ())


def test_one_pods_change_writes_one_slice_and_moves_nobody() -> None:
    pods = [pod(f"p{i}") for i in range(130)]
    slices = made(service(), carried_out(service(), pods))
    pods[3] = pod("p3", ready=False)
    todo = carried_out(service(), pods, slices)
    assert (todo.create, todo.delete, len(todo.update)) == ((), (), 1)
    before = [e["targetRef"]["name"] for e in slices[0]["endpoints"]]
    assert [e["targetRef"]["name"] for e in todo.update[0]["endpoints"]] == before


def test_the_last_pod_gone_leaves_one_empty_slice() -> None:
    slices = made(service(), carried_out(service(), [pod("p1", port=1), pod("p2", port=2)]))
    todo = carried_out(service(), [], slices)
    assert [s["endpoints"] for s in todo.update] == [[]]
    assert len(todo.delete) == 1


def test_the_first_pod_fills_the_empty_slice() -> None:
    slices = made(service(), carried_out(service(), []))
    todo = carried_out(service(), [pod("p1")], slices)
    assert (todo.create, todo.delete) == ((), ())
    assert [len(s["endpoints"]) for s in todo.update] == [1]
    assert todo.update[0]["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]


def test_slice_labels_carry_the_services_own() -> None:
    labelled = service(clusterIP="None")
    labelled["metadata"]["labels"] = {"x": "y"}
    assert slice_labels(labelled) == {
        "x": "y",
        "service.kubernetes.io/headless": "",
        "kubernetes.io/service-name": "s",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }


def test_endpoints_list_ready_and_not_ready_apart_and_ending_ones_not_at_all() -> None:
    found = subsets(service(), [pod("p2"), pod("p1"), pod("p3", ready=False), pod("p4", ending=True)])
    assert len(found) == 1
    assert [a["targetRef"]["name"] for a in found[0]["addresses"]] == ["p1", "p2"]
    assert [a["targetRef"]["name"] for a in found[0]["notReadyAddresses"]] == ["p3"]
    assert found[0]["ports"] == [{"port": 8080, "protocol": "TCP"}]


def test_endpoints_of_a_publishing_service_are_all_ready() -> None:
    found = subsets(service(publishNotReadyAddresses=True), [pod("p1", ready=False), pod("p2", ending=True)])
    assert [a["targetRef"]["name"] for a in found[0]["addresses"]] == ["p1", "p2"]
    assert "notReadyAddresses" not in found[0]


def test_a_headless_service_without_ports_still_has_addresses() -> None:
    headless = service(clusterIP="None", ports=[])
    found = subsets(headless, [pod("p1", hostname="h", subdomain="s")])
    assert found[0]["addresses"][0]["hostname"] == "h"
    assert "ports" not in found[0]


def test_endpoints_hold_a_thousand_addresses_ready_ones_first() -> None:
    pods = [pod(f"p{i}") for i in range(990)] + [pod(f"p{i}", ready=False) for i in range(990, 1020)]
    found, cut = truncated(subsets(service(), pods))
    assert cut
    assert (len(found[0]["addresses"]), len(found[0]["notReadyAddresses"])) == (990, 10)


def test_a_pod_whose_node_object_is_gone_is_published_only_where_readiness_does_not_count() -> None:
    pods = [pod("p1", nodeName="there"), pod("p2", nodeName="gone")]
    assert placed(service(), pods, {"there": ""}) == pods[:1]
    assert placed(service(publishNotReadyAddresses=True), pods, {"there": ""}) == pods
