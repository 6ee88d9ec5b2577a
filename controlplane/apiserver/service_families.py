"""PURE. Which address families a Service has: what `ipFamilyPolicy`, `ipFamilies` and `clusterIPs` ask for,
against what the cluster's Service ranges offer.

A policy that was not given is never a static default: on update it is the old one, so that a change of
something else neither adds nor takes an address. Source: upstream's registry/core/service/storage/alloc.go
(initIPFamilyFields) and validation.ValidateServiceClusterIPsRelatedFields.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from controlplane.apiserver.validation_fields import Causes

Object = dict[str, Any]

SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"
POLICIES = (PREFER, REQUIRE, SINGLE)
FAMILIES = ("IPv4", "IPv6")
FIELDS = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


def family_of(address: str) -> str:
    """Raises ValueError for what is no address."""
    return f"IPv{ipaddress.ip_address(address).version}"


def settle(causes: Causes, new: Object, old: Object | None, configured: Sequence[str]) -> None:
    """Fill in a Service's `ipFamilyPolicy` and `ipFamilies`; `configured` are the cluster's, its own first.

    What cannot be is added to `causes`, and then the object must not be used.
    """
    spec, before = new["spec"], (old or {}).get("spec") or {}
    if spec.get("ipFamilyPolicy") == PREFER == before.get("ipFamilyPolicy") and _same(spec, before, *FIELDS):
        return  # a cluster that has become dual-stack since does not change Services by itself
    headless = spec.get("clusterIP") == "None"
    alone = headless and not spec.get("selector")
    spec["ipFamilyPolicy"] = (
        spec.get("ipFamilyPolicy") or before.get("ipFamilyPolicy") or (REQUIRE if alone else SINGLE)
    )
    _fit_policy(causes, spec, before)
    _infer(causes, spec, configured)
    if causes.found:
        return
    families = spec.setdefault("ipFamilies", [])
    if not alone:
        if spec["ipFamilyPolicy"] == REQUIRE and len(configured) < 2:
            text = "this cluster is not configured for dual-stack services"
            causes.invalid("spec.ipFamilyPolicy", REQUIRE, text)
        for index, family in enumerate(families):
            if family not in configured:
                causes.invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
    if causes.found:
        return
    families[:] = families or [configured[0]]
    # Endpoints that somebody writes by hand may be of both families, whatever the cluster has.
    if spec["ipFamilyPolicy"] != SINGLE and len(families) == 1 and (alone or len(configured) == 2):
        families.append(next(family for family in FAMILIES if family != families[0]))


def _fit_policy(causes: Causes, spec: Object, before: Object) -> None:
    policy = spec["ipFamilyPolicy"]
    held = {"clusterIPs": "cluster IP", "ipFamilies": "IP family"}
    plural = {"clusterIPs": "cluster IPs", "ipFamilies": "IP families"}
    for field in held:
        if policy == SINGLE and before and _same(spec, before, field):
            spec[field] = (spec.get(field) or [])[:1]  # asking for one is to give the other back
        given = spec.get(field) or []
        if policy == SINGLE and len(given) == 2:
            text = "must be 'RequireDualStack' or 'PreferDualStack' "
            text += f"when multiple {plural[field]} are specified"
            causes.invalid("spec.ipFamilyPolicy", policy, text)
        had = before.get(field) or []
        if policy != SINGLE and len(had) == 2 and given == had[:1]:
            text = f"must be 'SingleStack' to release the secondary {held[field]}"
            causes.invalid("spec.ipFamilyPolicy", policy, text)


def _infer(causes: Causes, spec: Object, configured: Sequence[str]) -> None:
    """An address that was asked for says which family it is."""
    families = spec.get("ipFamilies") or []
    for index, address in enumerate(spec.get("clusterIPs") or ()):
        if address == "None":
            break
        if index >= len(families):
            family = family_of(address)
            if family not in configured:
                text = f"{family} is not configured on this cluster"
                causes.invalid(f"spec.clusterIPs[{index}]", spec["clusterIPs"], text)
            else:
                families = [*families, family]
    spec["ipFamilies"] = families


def _same(one: Object, other: Object, *fields: str) -> bool:
    return all(one.get(field) == other.get(field) for field in fields)


def check(causes: Causes, spec: Object) -> None:
    """What a Service says of its addresses, by itself; ExternalName has none to speak of."""
    first, every = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if first and every and every[0] != first:
        causes.invalid("spec.clusterIPs", every, "first value must match `clusterIP`")
    families = spec.get("ipFamilies") or []
    for index, family in enumerate(families):
        if family not in FAMILIES:
            causes.not_supported(f"spec.ipFamilies[{index}]", family, FAMILIES)
        elif family in families[:index]:
            causes.duplicate(f"spec.ipFamilies[{index}]", family)
    policy = spec.get("ipFamilyPolicy")
    if policy and policy not in POLICIES:
        causes.not_supported("spec.ipFamilyPolicy", policy, POLICIES)
    if every and every[0] == "None":
        if len(every) > 1:
            causes.invalid("spec.clusterIPs", every, "'None' must be the first and only value")
        return
    _check_pair(causes, every, families)


def _check_pair(causes: Causes, every: Sequence[str], families: Sequence[str]) -> None:
    if len(every) > 2:
        causes.invalid("spec.clusterIPs", list(every), "may only hold up to 2 values")
    try:
        found = [family_of(address) for address in every]
    except ValueError:
        return  # said of each address by the caller
    if len(found) == 2 and found[0] == found[1]:
        text = "may specify no more than one IP for each IP family"
        causes.invalid("spec.clusterIPs", list(every), text)
        return
    for index, (family, wanted) in enumerate(zip(found, families, strict=False)):
        if family != wanted and wanted in FAMILIES:
            text = f"expected an {wanted} value as indicated by `ipFamilies[{index}]`"
            causes.invalid(f"spec.clusterIPs[{index}]", every[index], text)


def check_update(causes: Causes, after: Object, before: Object) -> None:
    """A virtual IP is a promise: it stays as long as the Service has its family."""
    single = {"clusterIPs": "clusterIP"}
    for field in ("clusterIPs", "ipFamilies"):
        had, has = (s.get(field) or [*filter(None, [s.get(single.get(field, ""))])] for s in (before, after))
        for index, (old, new) in enumerate(zip(had, has, strict=False)):
            if old != new:
                value = [new] if field == "clusterIPs" else new
                causes.invalid(f"spec.{field}[{index}]", value, "may not change once set")
