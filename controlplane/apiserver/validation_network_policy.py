"""NetworkPolicies: what the node's packet filter would be given.

A range that is none must be refused here: the proxy would otherwise find it when it writes its rules, long
after the client was told that all is well (upstream: pkg/apis/networking/validation).
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_addresses import CIDR_DETAIL, Network, read_range
from controlplane.apiserver.validation_fields import Causes, check_selector

Object = dict[str, Any]

_PROTOCOLS = ("SCTP", "TCP", "UDP")


def network_policy(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    check_selector(causes, "spec.podSelector", spec.get("podSelector") or {})
    for index, kind in enumerate(spec.get("policyTypes") or ()):
        if kind not in ("Egress", "Ingress"):
            causes.not_supported(f"spec.policyTypes[{index}]", kind, ("Egress", "Ingress"))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            where = f"spec.{direction}[{index}]"
            for position, port in enumerate(rule.get("ports") or ()):
                _check_port(causes, f"{where}.ports[{position}]", port)
            for position, peer in enumerate(rule.get(peers) or ()):
                _check_peer(causes, f"{where}.{peers}[{position}]", peer)


def _check_port(causes: Causes, path: str, port: Object) -> None:
    first, last = port.get("port"), port.get("endPort")
    if first is not None:
        causes.port_or_name(f"{path}.port", first)
    causes.one_of(f"{path}.protocol", port.get("protocol"), _PROTOCOLS)
    if last is None:
        return
    if first is None:
        causes.invalid(f"{path}.endPort", last, "may not be specified when `port` is not specified")
    elif isinstance(first, str):
        causes.invalid(f"{path}.endPort", last, "may not be specified when `port` is non-numeric")
    else:
        if last < first:
            causes.invalid(f"{path}.endPort", first, "must be greater than or equal to `port`")
        causes.port(f"{path}.endPort", last)


def _check_peer(causes: Causes, path: str, peer: Object) -> None:
    if not peer:
        causes.required(path, "must specify a peer")
    for name in ("podSelector", "namespaceSelector"):
        check_selector(causes, f"{path}.{name}", peer.get(name) or {})
    block = peer.get("ipBlock")
    if block is None:
        return
    if len(peer) > 1:
        causes.forbidden(path, "may not specify both ipBlock and another peer")
    where, text = f"{path}.ipBlock", block.get("cidr") or ""
    whole = read_range(text)
    if not text:
        causes.required(f"{where}.cidr")
    elif whole is None:
        causes.invalid(f"{where}.cidr", text, CIDR_DETAIL)
    for index, part in enumerate(block.get("except") or ()):
        found = read_range(part)
        if found is None:
            causes.invalid(f"{where}.except[{index}]", part, CIDR_DETAIL)
        elif whole is not None and not _within(found, whole):
            causes.invalid(f"{where}.except[{index}]", part, "must be a strict subset of `cidr`")


def _within(part: Network, whole: Network) -> bool:
    return part != whole and part.version == whole.version and part.subnet_of(whole)  # type: ignore[arg-type]
