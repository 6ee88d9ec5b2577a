"""What a Service tells the world outside: health ports, balancers, and addresses as text in rules."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from controlplane.apiserver.allocators import ServiceAllocator, carry_over
from controlplane.apiserver.errors import StatusError

from .test_validation import POD, create, prepared, update

Object = dict[str, Any]
META = {"name": "s", "namespace": "d"}
# Python reads this as one IPv6 address; in a file for ip6tables-restore it would be two rules.
TWO_LINES = "fe80::1%lo -j RETURN\n-A INPUT -j ACCEPT"


def service(**spec: Any) -> Object:
    made = {"selector": {"a": "b"}, "ports": [{"port": 80}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": META, "spec": made}


def checked(**spec: Any) -> Object:
    return service(type="LoadBalancer", externalTrafficPolicy="Local", **spec)


def allocator() -> ServiceAllocator:
    return ServiceAllocator("10.96.0.0/24", (30000, 30063), random.Random(1))


def stored(pool: ServiceAllocator, new: Object, old: Object | None = None) -> Object:
    new = prepared(new)
    if old is not None:
        carry_over(new, old)
    pool.allocate(new, old)(True)
    return new


def test_a_local_balancer_gets_a_health_port_and_keeps_it() -> None:
    pool = allocator()
    made = stored(pool, checked())
    port = made["spec"]["healthCheckNodePort"]
    assert 30000 <= port <= 30063 and port != made["spec"]["ports"][0]["nodePort"]
    again = stored(pool, checked(sessionAffinity="ClientIP"), made)
    assert again["spec"]["healthCheckNodePort"] == port
    with pytest.raises(StatusError, match="provided port is already allocated"):
        pool.allocate(prepared(service(type="NodePort", ports=[{"port": 1, "nodePort": port}])), None)
    cluster = stored(pool, service(type="LoadBalancer"), again)
    assert "healthCheckNodePort" not in cluster["spec"]
    stored(pool, service(type="NodePort", ports=[{"port": 1, "nodePort": port}]))  # it was given back


def test_a_health_port_that_is_asked_for_is_had_or_refused_as_upstream_does() -> None:
    pool = allocator()
    made = stored(pool, checked(healthCheckNodePort=30001))
    assert made["spec"]["healthCheckNodePort"] == 30001
    lead = "failed to allocate requested HealthCheck NodePort"
    with pytest.raises(StatusError, match=f"{lead} 30001: provided port is already allocated") as caught:
        pool.allocate(prepared(checked(healthCheckNodePort=30001)), None)
    assert caught.value.code == 500
    with pytest.raises(StatusError, match=f"{lead} 99: provided port is not in the valid range"):
        pool.allocate(prepared(checked(healthCheckNodePort=99)), None)
    pool.release(made)
    stored(pool, checked(healthCheckNodePort=30001))


def test_a_balancers_class_and_health_port_stay() -> None:
    old = checked(healthCheckNodePort=30001, loadBalancerClass="example.com/one")
    new = checked(healthCheckNodePort=30002, loadBalancerClass="example.com/two")
    assert update(new, old) == [
        'spec.loadBalancerClass: Invalid value: "example.com/two": may not change once set',
        "spec.healthCheckNodePort: Forbidden: field is immutable",
    ]
    assert update(old, service(type="ClusterIP")) == []  # another type may choose


def test_external_ips_have_a_policy_that_goes_with_them() -> None:
    pool = allocator()
    old = stored(pool, service(externalIPs=["203.0.113.1"]))
    assert old["spec"]["externalTrafficPolicy"] == "Cluster"
    new = copy.deepcopy(old)
    del new["spec"]["externalIPs"]
    carry_over(new, old)
    assert "externalTrafficPolicy" not in new["spec"] and update(new, old) == []


def test_a_port_keeps_its_node_port_by_its_name() -> None:
    """As upstream, whatever else of it changes; `kubectl replace` of a manifest that names no node port."""
    pool = allocator()
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    old = stored(pool, service(type="NodePort", ports=ports))
    one, two = (port["nodePort"] for port in old["spec"]["ports"])
    swapped = [{"name": "b", "port": 80}, {"name": "a", "port": 8080}]
    new = stored(pool, service(type="NodePort", ports=swapped), old)
    assert [port["nodePort"] for port in new["spec"]["ports"]] == [two, one]
    alone = stored(pool, service(type="NodePort"))
    moved = stored(pool, service(type="NodePort", ports=[{"port": 8080}]), alone)
    kept = moved["spec"]["ports"][0]["nodePort"]
    assert kept == alone["spec"]["ports"][0]["nodePort"]
    inner = stored(pool, service(ports=[{"port": 9, "nodePort": kept}]), moved)
    assert "nodePort" not in inner["spec"]["ports"][0]


PORT_NAME = "may not expose port 10250 externally since it is used by kubelet"


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (
            service(type="LoadBalancer", ports=[{"port": 10250}]),
            f"spec.ports[0]: Invalid value: 10250: {PORT_NAME}",
        ),
        (
            service(ports=[{"port": 80, "appProtocol": "a b"}]),
            'spec.ports[0].appProtocol: Invalid value: "a b": name part must consist of',
        ),
        (service(externalIPs=[TWO_LINES]), "spec.externalIPs[0]: Invalid value: "),
        (service(clusterIPs=[TWO_LINES]), "spec.clusterIPs[0]: Invalid value: "),
        (
            service(type="LoadBalancer", loadBalancerSourceRanges=["fd00::%x\ny/64"]),
            "spec.LoadBalancerSourceRanges[0]: Invalid value: ",
        ),
        *(
            (
                service(type="LoadBalancer", loadBalancerSourceRanges=[text]),
                "spec.LoadBalancerSourceRanges[0]: Invalid value: ",
            )
            for text in ("10.0.0.0/0.0.0.255", "10.0.0.0/255.0.0.0", "10.0.0.0/٨", "10.0.0.0/+8", "10.0.0.0/")
        ),
        (service(externalIPs=["::ffff:127.0.0.1"]), 'spec.externalIPs[0]: Invalid value: "::ffff:127.0.0.1"'),
    ],
)
def test_what_a_service_may_not_say(obj: Object, wanted: str) -> None:
    found = create(obj)
    assert found and found[0].startswith(wanted), found


def endpoint_slice(kind: str, *addresses: str, **port: Any) -> Object:
    made: Object = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": META}
    made |= {"endpoints": [{"addresses": [*addresses]}], "ports": [{"port": 1, **port}]}
    return made | {"addressType": kind}


WHERE = "endpoints[0].addresses[0]: Invalid value: "


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (endpoint_slice("IPv4", "fd00::1"), WHERE + '"fd00::1": must be a valid IPv4 address'),
        (endpoint_slice("IPv6", "10.0.0.1"), WHERE + '"10.0.0.1": must be a valid IPv6 address'),
        (endpoint_slice("IPv6", TWO_LINES), WHERE),
        (endpoint_slice("IPv6", "::1"), WHERE + '"::1": may not be in the loopback range'),
        (endpoint_slice("IPv6", "::ffff:127.0.0.1"), WHERE + '"::ffff:127.0.0.1": must be a valid IPv6'),
        (endpoint_slice("IPv4", "::ffff:127.0.0.1"), WHERE + '"::ffff:127.0.0.1": may not be in the loop'),
        (endpoint_slice("IPv4", "::ffff:169.254.169.254"), WHERE + '"::ffff:169.254.169.254": may not be'),
        (endpoint_slice("IPv6", "fe80::1"), WHERE + '"fe80::1": may not be in the link-local range'),
        (endpoint_slice("IPv4", "0.0.0.0"), WHERE + '"0.0.0.0": may not be unspecified (0.0.0.0)'),
        (endpoint_slice("FQDN", "a b"), WHERE + '"a b": a lowercase RFC 1123 subdomain'),
        (
            endpoint_slice("IPv4", *["10.0.0.1"] * 101),
            "endpoints[0].addresses: Too many: 101: must have at most 100 items",
        ),
        (endpoint_slice("IPv4", "10.0.0.1", appProtocol=" "), "ports[0].appProtocol: Invalid value: "),
    ],
)
def test_what_an_endpoint_slice_may_not_say(obj: Object, wanted: str) -> None:
    found = create(obj)
    assert found and found[0].startswith(wanted), found


def test_endpoints_are_plain_addresses() -> None:
    subset = {"addresses": [{"ip": TWO_LINES}], "ports": [{"port": 1}]}
    found = create({"apiVersion": "v1", "kind": "Endpoints", "metadata": META, "subsets": [subset]})
    assert len(found) == 1 and found[0].startswith("subsets[0].addresses[0].ip: Invalid value: ")


INGRESS = "status.loadBalancer.ingress"


@pytest.mark.parametrize(
    ("kind", "entry", "wanted"),
    [
        ("LoadBalancer", {"ip": TWO_LINES}, f"{INGRESS}[0].ip: Invalid value: "),
        ("LoadBalancer", {"ip": "1.2.3"}, f'{INGRESS}[0].ip: Invalid value: "1.2.3": must be a valid IP'),
        ("LoadBalancer", {"ip": "2001:db8::1", "ipMode": "X"}, f"{INGRESS}[0].ipMode: Unsupported value"),
        ("LoadBalancer", {"ipMode": "VIP"}, f"{INGRESS}[0].ipMode: Forbidden: may not be specified"),
        ("LoadBalancer", {"hostname": "1.2.3.4"}, f"{INGRESS}[0].hostname: Invalid value: "),
        ("NodePort", {"ip": "203.0.113.1"}, f"{INGRESS}: Forbidden: may only be used when `spec.type` is"),
    ],
)
def test_a_balancer_tells_addresses_and_nothing_else(kind: str, entry: Object, wanted: str) -> None:
    old = service(type=kind)
    found = update(old | {"status": {"loadBalancer": {"ingress": [entry]}}}, old)
    assert found and found[0].startswith(wanted), found


def test_a_balancers_address_is_a_virtual_one_unless_it_says_otherwise() -> None:
    old = service(type="LoadBalancer")
    entries = [{"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "b.example"}]
    new = old | {"status": {"loadBalancer": {"ingress": entries}}}
    assert update(new, old) == []
    told = prepared(new)["status"]["loadBalancer"]["ingress"]
    assert [entry.get("ipMode") for entry in told] == ["VIP", "Proxy", None]


def test_an_address_that_is_taken_is_told_as_go_prints_it() -> None:
    pool = allocator()
    stored(pool, service(clusterIP="10.96.0.9"))
    told = r'spec.clusterIPs: Invalid value: \[\]string\{"10.96.0.9"\}: failed to allocate IP 10.96.0.9: '
    with pytest.raises(StatusError, match=told):
        pool.allocate(prepared(service(clusterIP="10.96.0.9")), None)


@pytest.mark.parametrize("field", ["podIPs", "hostIPs"])
@pytest.mark.parametrize(
    ("addresses", "wanted"),
    [
        (["10.0.0.1", "fd00::1"], ""),
        ([TWO_LINES], "[0]: Invalid value: "),
        (["10.0.0.1", "10.0.0.2"], ": Invalid value: []string{"),
    ],
)
def test_a_pods_addresses_are_plain_ones(field: str, addresses: list[str], wanted: str) -> None:
    told = {"status": {field: [{"ip": address} for address in addresses]}}
    found = update(POD | told, POD)
    assert [text.startswith(f"status.{field}{wanted}") for text in found] == [True] * bool(wanted)
    assert update(POD | told, POD | told) == []  # what is stored may go on


@pytest.mark.parametrize(("one", "every"), [("podIP", "podIPs"), ("hostIP", "hostIPs")])
def test_the_one_address_of_a_pod_is_judged_with_the_others(one: str, every: str) -> None:
    for told in ({one: TWO_LINES}, {one: "foo bar", every: [{"ip": "10.0.0.1"}]}):
        found = update(POD | {"status": told}, POD)
        assert len(found) == 1 and found[0].startswith(f"status.{every}[0]: Invalid value: "), found
        assert update(POD | {"status": told}, POD | {"status": told}) == []


@pytest.mark.parametrize(("one", "every"), [("podIP", "podIPs"), ("hostIP", "hostIPs")])
def test_the_two_places_of_a_pods_address_agree(one: str, every: str) -> None:
    first, second = {"ip": "10.0.0.1"}, {"ip": "fd00::1"}
    for told, wanted in [
        ({one: "10.0.0.1"}, ("10.0.0.1", [first])),
        ({one: "fd00::1", every: [first, second]}, ("fd00::1", [second])),
        ({one: "10.0.0.1", every: [first, second]}, ("10.0.0.1", [first, second])),
        ({every: [first, second]}, ("10.0.0.1", [first, second])),
        ({}, (None, None)),
    ]:
        status = prepared(POD | {"status": told})["status"]
        assert (status.get(one), status.get(every)) == wanted
