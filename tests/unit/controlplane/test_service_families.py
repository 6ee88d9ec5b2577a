"""Upstream's rules for ipFamilyPolicy, ipFamilies and clusterIPs, by a real allocator."""

from __future__ import annotations

import random
from typing import Any

import pytest

from controlplane.apiserver import service_families
from controlplane.apiserver.allocators import ServiceAllocator, carry_over
from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.validation_fields import Causes
from controlplane.apiserver.validation_network import service_update

Object = dict[str, Any]
V4, V6 = "10.96.0.0/24", "fd00:96::/112"


def service(**spec: Any) -> Object:
    return {"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}], **spec}}


def allocator(*ranges: str) -> ServiceAllocator:
    return ServiceAllocator(",".join(ranges), (30000, 32767), random.Random(1))


def given(new: Object, *ranges: str, old: Object | None = None) -> tuple[Any, Any, list[int]]:
    """Policy, families, and the IP version of each address."""
    allocator(*ranges).allocate(new, old)(True)
    spec = new["spec"]
    addresses = spec["clusterIPs"]
    assert spec["clusterIP"] == addresses[0]
    versions = [0 if a == "None" else 6 if ":" in a else 4 for a in addresses]
    return spec["ipFamilyPolicy"], spec["ipFamilies"], versions


BOTH, SWAPPED = ["IPv4", "IPv6"], ["IPv6", "IPv4"]


@pytest.mark.parametrize(
    ("ranges", "spec", "expected"),
    [
        ((V4,), {}, ("SingleStack", ["IPv4"], [4])),
        ((V4, V6), {}, ("SingleStack", ["IPv4"], [4])),
        ((V6, V4), {}, ("SingleStack", ["IPv6"], [6])),
        ((V4, V6), {"ipFamilies": ["IPv6"]}, ("SingleStack", ["IPv6"], [6])),
        ((V4, V6), {"clusterIP": "fd00:96::9"}, ("SingleStack", ["IPv6"], [6])),
        ((V4,), {"ipFamilyPolicy": "PreferDualStack"}, ("PreferDualStack", ["IPv4"], [4])),
        ((V4, V6), {"ipFamilyPolicy": "PreferDualStack"}, ("PreferDualStack", BOTH, [4, 6])),
        ((V6, V4), {"ipFamilyPolicy": "RequireDualStack"}, ("RequireDualStack", SWAPPED, [6, 4])),
        (
            (V4, V6),
            {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]},
            ("RequireDualStack", SWAPPED, [6, 4]),
        ),
        (
            (V4, V6),
            {"ipFamilyPolicy": "PreferDualStack", "clusterIPs": ["10.96.0.9", "fd00:96::9"]},
            ("PreferDualStack", BOTH, [4, 6]),
        ),
        ((V4, V6), {"clusterIP": "None"}, ("SingleStack", ["IPv4"], [0])),
        ((V4,), {"clusterIP": "None", "selector": {}}, ("RequireDualStack", BOTH, [0])),
        (
            (V4,),
            {"clusterIP": "None", "selector": {}, "ipFamilyPolicy": "SingleStack"},
            ("SingleStack", ["IPv4"], [0]),
        ),
    ],
)
def test_what_a_new_service_gets(ranges: tuple[str, ...], spec: Object, expected: Any) -> None:
    assert given(service(**spec), *ranges) == expected


@pytest.mark.parametrize(
    ("ranges", "spec", "said"),
    [
        (
            (V4,),
            {"ipFamilyPolicy": "RequireDualStack"},
            "this cluster is not configured for dual-stack services",
        ),
        ((V4,), {"ipFamilies": ["IPv6"]}, r"spec.ipFamilies\[0\]: .*not configured on this cluster"),
        ((V4,), {"clusterIP": "fd00::1"}, r"spec.clusterIPs\[0\]: .*IPv6 is not configured on this cluster"),
        ((V4, V6), {"ipFamilies": BOTH}, "must be 'RequireDualStack' or 'PreferDualStack'"),
        ((V4, V6), {"clusterIPs": ["10.96.0.9", "fd00:96::9"]}, "when multiple cluster IPs are specified"),
        ((V4, V6), {"ipFamilyPolicy": "Both"}, 'Unsupported value: "Both"'),
        ((V4, V6), {"ipFamilies": ["IPv5"]}, 'Unsupported value: "IPv5"'),
        ((V4, V6), {"ipFamilies": ["IPv4", "IPv4"]}, "Duplicate value"),
        ((V4, V6), {"clusterIPs": ["10.96.0.9", "10.96.0.8"]}, "no more than one IP for each IP family"),
        (
            (V4, V6),
            {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv6"]},
            "expected an IPv6 value as indicated by",
        ),
        ((V4, V6), {"clusterIPs": ["None", "10.96.0.9"]}, "'None' must be the first and only value"),
        ((V4, V6), {"clusterIP": "fd00:97::1"}, "The range of valid IPs is fd00:96::/112"),
        ((V4, V6), {"clusterIP": "nonsense"}, "must be a valid IP address"),
    ],
)
def test_what_a_new_service_cannot_have(ranges: tuple[str, ...], spec: Object, said: str) -> None:
    with pytest.raises(StatusError, match=said) as refused:
        given(service(**spec), *ranges)
    assert refused.value.code == 422


def changed(old: Object, **spec: Any) -> Object:
    return {
        "metadata": {"name": "s"},
        "spec": {k: v for k, v in (old["spec"] | spec).items() if v is not None},
    }


def test_a_service_is_given_a_second_address_and_gives_it_back() -> None:
    pool = allocator(V4, V6)
    one = service()
    pool.allocate(one, None)(True)
    two = changed(one, ipFamilyPolicy="PreferDualStack")
    pool.allocate(two, one)(True)
    first, second = two["spec"]["clusterIPs"]
    assert first == one["spec"]["clusterIP"] and two["spec"]["ipFamilies"] == BOTH
    with pytest.raises(StatusError, match="already allocated"):
        pool.allocate(service(clusterIP=second), None)
    back = changed(two, ipFamilyPolicy="SingleStack")
    pool.allocate(back, two)(True)
    assert (back["spec"]["clusterIPs"], back["spec"]["ipFamilies"]) == ([first], ["IPv4"])
    pool.allocate(service(clusterIP=second), None)(True)


def test_a_change_of_something_else_neither_adds_nor_takes_an_address() -> None:
    """Though the cluster has become dual-stack, or a PUT does not repeat the fields."""
    old = service(ipFamilyPolicy="PreferDualStack")
    assert given(old, V4) == ("PreferDualStack", ["IPv4"], [4])
    assert given(changed(old, sessionAffinity="ClientIP"), V4, V6, old=old)[2] == [4]
    both = service(ipFamilyPolicy="RequireDualStack")
    given(both, V4, V6)
    put = changed(both, ipFamilyPolicy=None, ipFamilies=None, clusterIP=None, clusterIPs=None)
    carry_over(put, both)
    pool = allocator(V4, V6)
    pool.adopt(both)
    pool.allocate(put, both)(True)
    assert put["spec"]["clusterIPs"] == both["spec"]["clusterIPs"]
    assert put["spec"]["ipFamilyPolicy"] == "RequireDualStack"


def test_giving_an_address_back_takes_a_clear_word() -> None:
    old = service(ipFamilyPolicy="RequireDualStack")
    given(old, V4, V6)
    fewer = changed(old, clusterIPs=old["spec"]["clusterIPs"][:1])
    with pytest.raises(StatusError, match="must be 'SingleStack' to release the secondary cluster IP"):
        given(fewer, V4, V6, old=old)


def test_addresses_and_families_stay() -> None:
    old = service(ipFamilyPolicy="RequireDualStack")
    given(old, V4, V6)
    first = old["spec"]["clusterIP"]
    causes = Causes()
    new = changed(old, clusterIPs=[first, "fd00:96::77"], ipFamilies=SWAPPED)
    service_update(causes, new, old)
    assert [cause.field for cause in causes.found] == [
        "spec.clusterIPs[1]",
        "spec.ipFamilies[0]",
        "spec.ipFamilies[1]",
    ]


def test_a_stored_service_of_a_range_that_is_gone_does_no_harm() -> None:
    old = service(ipFamilyPolicy="RequireDualStack")
    given(old, V4, V6)
    single = allocator(V4)
    single.adopt(old)
    single.release(old)


def test_one_of_the_two_fields_is_enough() -> None:
    causes = Causes()
    service_families.check(causes, {"clusterIPs": ["10.96.0.9"]})
    assert causes.found == []
    causes = Causes()
    service_families.check(causes, {"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.9"]})
    assert [cause.field for cause in causes.found] == ["spec.clusterIPs"]
