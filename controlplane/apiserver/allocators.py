"""ClusterIPs and node ports: every Service gets its own, and nobody else's.

All writes pass through one thread, so an allocation is a plain set that is filled from the stored Services
and follows their events. What is handed out is held until the write is either visible or refused. As
upstream, dynamic allocation keeps clear of a static band at the start of the range, where people put the
addresses they choose themselves, such as 10.96.0.10 for DNS (pkg/registry/core/service/ipallocator).
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable
from typing import Any

from controlplane.apiserver import service_families
from controlplane.apiserver.errors import FORBIDDEN, INVALID, Cause, StatusError, internal, invalid
from controlplane.apiserver.validation_addresses import is_ip
from controlplane.apiserver.validation_fields import Causes, go_value
from kubeclient.ranges import Network, family, read_ranges

Object = dict[str, Any]

_TYPES_WITH_PORTS = ("NodePort", "LoadBalancer")


class Pool:
    """Numbers of a range, taken and given back; `static` of the first ones are never handed out unasked."""

    def __init__(self, first: int, size: int, static: int, choose: random.Random) -> None:
        self._first, self._size, self._static, self._choose = first, size, static, choose
        self._used: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return self._first <= number < self._first + self._size

    def take(self, number: int) -> bool:
        """False when it is in use."""
        if number in self._used:
            return False
        self._used.add(number)
        return True

    def take_any(self) -> int | None:
        """A free number, from above the static band while there is one; None when all are in use."""
        for low, high in ((self._static, self._size), (0, self._static)):
            for _ in range(16):
                if high > low:
                    number = self._first + self._choose.randrange(low, high)
                    if self.take(number):
                        return number
            if high - low <= 65536:
                for offset in range(low, high):
                    if self.take(self._first + offset):
                        return self._first + offset
        return None

    def give_back(self, number: int) -> None:
        self._used.discard(number)


class AddressPool(Pool):
    """The addresses of one Service range."""

    def __init__(self, network: Network, choose: random.Random) -> None:
        hosts = network.num_addresses - 2
        static = min(max(16, hosts // 16), 256) if hosts >= 16 else 0
        super().__init__(int(network[1]), hosts, static, choose)
        self.network = network


class ServiceAllocator:
    """Addresses of the Service range, or of one per address family, and ports of one node-port range."""

    def __init__(
        self, service_range: str, node_ports: tuple[int, int], choose: random.Random | None = None
    ) -> None:
        choose = choose or random.SystemRandom()
        # By family; the first is the cluster's own.
        self._addresses = {family(n): AddressPool(n, choose) for n in read_ranges(service_range)}
        low, high = node_ports
        count = high - low + 1
        band = min(max(16, count // 32), 128) if count > 16 else 0
        self._ports = Pool(low, count, band, choose)
        self.node_ports = node_ports

    @property
    def first_address(self) -> str:
        """The API server's own ClusterIP."""
        return str(next(iter(self._addresses.values())).network[1])

    def adopt(self, service: Object) -> None:
        """Count what a stored Service holds."""
        for pool, number in self._held(service):
            pool.take(number)

    def release(self, service: Object) -> None:
        """Give back what a deleted Service held."""
        for pool, number in self._held(service):
            pool.give_back(number)

    def _held(self, service: Object) -> list[tuple[Pool, int]]:
        found: list[tuple[Pool, int]] = [(self._ports, port) for port in _node_ports(service)]
        if _health_port(service):
            found.append((self._ports, _health_port(service)))
        for address in map(ipaddress.ip_address, _addresses(service)):
            pool = self._addresses.get(f"IPv{address.version}")
            if pool is not None:  # else of a range that the cluster had once
                found.append((pool, int(address)))
        return found

    def allocate(self, new: Object, old: Object | None) -> Callable[[bool], None]:
        """Fill in families, addresses and nodePorts. Call the answer with True once the write is stored (then
        what the old version held and the new does not is given back) or with False when it is not.

        Raises StatusError (422) for an address or port that is taken or out of range, or a family that the
        cluster does not have.
        """
        new.setdefault("spec", {})
        taken: list[tuple[Pool, int]] = []
        try:
            self._allocate_addresses(new, old, taken)
            self._allocate_ports(new, old, taken)
            self._allocate_health_port(new, old, taken)
        except StatusError:
            for pool, number in taken:
                pool.give_back(number)
            raise
        kept = set(self._held(new))
        freed = [held for held in self._held(old) if held not in kept] if old is not None else []

        def settle(stored: bool) -> None:
            for pool, number in freed if stored else taken:
                pool.give_back(number)

        return settle

    def _allocate_addresses(self, new: Object, old: Object | None, taken: list[tuple[Pool, int]]) -> None:
        spec = new["spec"]
        if spec.get("type") == "ExternalName":
            for field in service_families.FIELDS:
                spec.pop(field, None)
            return
        asked = list(spec.get("clusterIPs") or filter(None, [spec.get("clusterIP")]))
        spec["clusterIPs"], spec["clusterIP"] = asked, asked[0] if asked else ""
        causes = Causes()
        for index, address in enumerate(asked):
            if address != "None":
                _require_address(new, index, address)
        service_families.check(causes, spec)
        if not causes.found:
            service_families.settle(causes, new, old, tuple(self._addresses))
        if causes.found:
            raise invalid("Service", "", new["metadata"].get("name", ""), causes.found)
        if spec["clusterIP"] == "None":
            return
        held = set(_addresses(old)) if old else set()
        found = list(spec["clusterIPs"])
        for index, name in enumerate(spec["ipFamilies"]):
            if index >= len(found):
                found.append(self._any_of(name, taken))
            elif found[index] not in held:
                taken.append(self._claim(new, name, found[index]))
        spec["clusterIP"], spec["clusterIPs"] = found[0], found

    def _any_of(self, name: str, taken: list[tuple[Pool, int]]) -> str:
        pool = self._addresses[name]
        number = pool.take_any()
        if number is None:
            raise internal("failed to allocate a serviceIP: range is full")
        taken.append((pool, number))
        return str(pool.network[0] + (number - int(pool.network[0])))

    def _claim(self, service: Object, name: str, address: str) -> tuple[Pool, int]:
        pool, number = self._addresses[name], int(ipaddress.ip_address(address))
        shown = service["spec"]["clusterIPs"]
        if number not in pool:
            text = f"failed to allocate IP {address}: the provided IP ({address}) is not in the valid range."
            text += f" The range of valid IPs is {pool.network}"
            raise _refused(service, "spec.clusterIPs", shown, text)
        if not pool.take(number):
            text = f"failed to allocate IP {address}: provided IP is already allocated"
            raise _refused(service, "spec.clusterIPs", shown, text)
        return pool, number

    def _allocate_ports(self, new: Object, old: Object | None, taken: list[tuple[Pool, int]]) -> None:
        spec = new["spec"]
        ports = spec.get("ports") or []
        wanted = spec.get("type") in _TYPES_WITH_PORTS
        if spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False:
            wanted = False
        held = set(_node_ports(old)) if old else set()
        here: dict[int, set[str]] = {}
        for index, port in enumerate(ports):
            number = port.get("nodePort") or 0
            protocol = port.get("protocol", "TCP")
            if number:
                # One node port may serve the same port of a Service in TCP and in UDP.
                shared = number in here and protocol not in here[number]
                if not shared and number not in held:
                    taken.append((self._ports, self._claim_port(new, index, number)))
                held.discard(number)
            elif wanted:
                chosen = self._ports.take_any()
                if chosen is None:
                    raise internal("failed to allocate a nodePort: range is full")
                taken.append((self._ports, chosen))
                port["nodePort"] = number = chosen
            if number:
                here.setdefault(number, set()).add(protocol)

    def _allocate_health_port(self, new: Object, old: Object | None, taken: list[tuple[Pool, int]]) -> None:
        """Where a balancer asks whether a node has endpoints; upstream too calls its errors internal."""
        spec = new["spec"]
        asked = spec.get("healthCheckNodePort") or 0
        if not is_health_checked(spec) or (asked and asked == _health_port(old or {})):
            return
        if not asked:
            number = self._ports.take_any()
            if number is None:
                raise internal("failed to allocate a HealthCheck NodePort: range is full")
            spec["healthCheckNodePort"] = asked = number
        elif asked not in self._ports:
            low, high = self.node_ports
            text = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
            raise internal(f"failed to allocate requested HealthCheck NodePort {asked}: {text}")
        elif not self._ports.take(asked):
            text = "provided port is already allocated"
            raise internal(f"failed to allocate requested HealthCheck NodePort {asked}: {text}")
        taken.append((self._ports, asked))

    def _claim_port(self, service: Object, index: int, number: int) -> int:
        field = f"spec.ports[{index}].nodePort"
        low, high = self.node_ports
        if number not in self._ports:
            text = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
            raise _refused(service, field, number, text)
        if not self._ports.take(number):
            raise _refused(service, field, number, "provided port is already allocated")
        return number


def carry_over(new: Object, old: Object) -> None:
    """Before validation: a client that replaces a Service need not repeat what was allocated to it, and what
    only its old type had goes away with that type (upstream: patchAllocatedValues, dropTypeDependentFields).
    """
    spec, before = new.setdefault("spec", {}), old.get("spec") or {}
    if spec.get("type") != "ExternalName" and before.get("clusterIP"):
        _carry_addresses(spec, before)
    _carry_ports(spec, before)
    if is_health_checked(spec):
        if is_health_checked(before) and not spec.get("healthCheckNodePort") and _health_port(old):
            spec["healthCheckNodePort"] = _health_port(old)
    elif spec.get("healthCheckNodePort") == before.get("healthCheckNodePort"):
        spec.pop("healthCheckNodePort", None)
    dropped = []
    if not is_reached_from_outside(spec) and is_reached_from_outside(before):
        dropped.append("externalTrafficPolicy")
    if spec.get("type") != before.get("type"):
        dropped += _dropped_with_type(spec["type"])
    for field in dropped:
        if field in spec and spec[field] == before.get(field):
            del spec[field]


def _carry_ports(spec: Object, before: Object) -> None:
    """A port is known by its name: its number may be another now, and it keeps its node port."""
    ports, had = spec.get("ports") or (), {port["nodePort"] for port in _ported(before)}
    given = {port["nodePort"] for port in _ported(spec)}
    if spec.get("type") in _TYPES_WITH_PORTS:
        held = {port.get("name") or "": port["nodePort"] for port in _ported(before)}
        for port in ports:
            previous = held.get(port.get("name") or "")
            if previous and not port.get("nodePort") and previous not in given:
                port["nodePort"] = previous
    elif given <= had:
        for port in ports:
            port.pop("nodePort", None)


def _ported(spec: Object) -> list[Object]:
    return [port for port in spec.get("ports") or () if port.get("nodePort")]


def _dropped_with_type(kind: str) -> list[str]:
    dropped = ["loadBalancerClass", "allocateLoadBalancerNodePorts"] if kind != "LoadBalancer" else []
    if kind == "ExternalName":
        dropped += [*service_families.FIELDS, "internalTrafficPolicy"]
    return dropped


def _carry_addresses(spec: Object, before: Object) -> None:
    """Who gives but one of clusterIP and clusterIPs means the other to follow."""
    had = list(before.get("clusterIPs") or [before["clusterIP"]])
    first, every = spec.get("clusterIP"), spec.get("clusterIPs")
    if not first:
        spec["clusterIP"] = every[0] if every else had[0]
    elif every == had and first != had[0]:
        spec["clusterIPs"] = every = [first]
    if not every:
        spec["clusterIPs"] = had if spec["clusterIP"] == had[0] else [spec["clusterIP"]]


def is_reached_from_outside(spec: Object) -> bool:
    """Whether it has an address or a port that is not the cluster's own (upstream: ExternallyAccessible)."""
    kind = spec.get("type")
    return kind in _TYPES_WITH_PORTS or bool(kind == "ClusterIP" and spec.get("externalIPs"))


def is_health_checked(spec: Object) -> bool:
    """Whether a balancer has to ask each node for endpoints (upstream: NeedsHealthCheck)."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def _health_port(service: Object) -> int:
    return int((service.get("spec") or {}).get("healthCheckNodePort") or 0)


def _addresses(service: Object) -> Iterable[str]:
    spec = service.get("spec") or {}
    found = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [address for address in found if address and address != "None"]


def _node_ports(service: Object) -> list[int]:
    return [port["nodePort"] for port in _ported(service.get("spec") or {})]


def _require_address(service: Object, index: int, address: str) -> None:
    if not is_ip(address):
        field = f"spec.clusterIPs[{index}]"
        raise _refused(service, field, address, "must be a valid IP address")


def _refused(service: Object, field: str, value: object, text: str) -> StatusError:
    kind = FORBIDDEN if value is None else INVALID
    cause = Cause(kind, field, f"Invalid value: {go_value(value)}: {text}")
    return invalid("Service", "", service["metadata"].get("name", ""), [cause])
