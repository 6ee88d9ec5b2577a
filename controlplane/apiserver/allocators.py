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

from controlplane.apiserver.errors import FORBIDDEN, INVALID, Cause, StatusError, internal, invalid

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


class ServiceAllocator:
    """Addresses of one IPv4 service range and ports of one node-port range."""

    def __init__(
        self, service_range: str, node_ports: tuple[int, int], choose: random.Random | None = None
    ) -> None:
        choose = choose or random.SystemRandom()
        self._network = ipaddress.ip_network(service_range)
        hosts = self._network.num_addresses - 2
        static = min(max(16, hosts // 16), 256) if hosts >= 16 else 0
        self._addresses = Pool(int(self._network[1]), hosts, static, choose)
        low, high = node_ports
        count = high - low + 1
        band = min(max(16, count // 32), 128) if count > 16 else 0
        self._ports = Pool(low, count, band, choose)
        self.node_ports = node_ports

    @property
    def first_address(self) -> str:
        """The API server's own ClusterIP."""
        return str(self._network[1])

    def adopt(self, service: Object) -> None:
        """Count what a stored Service holds."""
        for address in _addresses(service):
            self._addresses.take(int(ipaddress.ip_address(address)))
        for port in _node_ports(service):
            self._ports.take(port)

    def release(self, service: Object) -> None:
        """Give back what a deleted Service held."""
        for address in _addresses(service):
            self._addresses.give_back(int(ipaddress.ip_address(address)))
        for port in _node_ports(service):
            self._ports.give_back(port)

    def allocate(self, new: Object, old: Object | None) -> Callable[[bool], None]:
        """Fill in clusterIP and nodePorts. Call the answer with True once the write is stored (then what the
        old version held and the new does not is given back) or with False when it is not.

        Raises StatusError (422) for an address or port that is taken or out of range.
        """
        new.setdefault("spec", {})
        taken: list[tuple[Pool, int]] = []
        try:
            self._allocate_address(new, old, taken)
            self._allocate_ports(new, old, taken)
        except StatusError:
            for pool, number in taken:
                pool.give_back(number)
            raise
        freed = self._no_longer_held(new, old)

        def settle(stored: bool) -> None:
            for pool, number in freed if stored else taken:
                pool.give_back(number)

        return settle

    def _allocate_address(self, new: Object, old: Object | None, taken: list[tuple[Pool, int]]) -> None:
        spec = new["spec"]
        if spec.get("type") == "ExternalName":
            for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(field, None)
            return
        asked = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
        if asked == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            self._families(spec)
            return
        if asked:
            if asked not in (_addresses(old) if old else ()):
                taken.append((self._addresses, self._claim(new, asked)))
        else:
            number = self._addresses.take_any()
            if number is None:
                raise internal("failed to allocate a serviceIP: range is full")
            taken.append((self._addresses, number))
            asked = str(ipaddress.ip_address(number))
        spec["clusterIP"], spec["clusterIPs"] = asked, [asked]
        self._families(spec)

    def _families(self, spec: Object) -> None:
        spec.setdefault("ipFamilies", ["IPv4" if self._network.version == 4 else "IPv6"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")

    def _claim(self, service: Object, address: str) -> int:
        try:
            number = int(ipaddress.ip_address(address))
        except ValueError:
            raise _refused(service, "spec.clusterIPs[0]", address, "must be a valid IP address") from None
        if number not in self._addresses:
            text = f"failed to allocate IP {address}: the provided IP ({address}) is not in the valid range."
            text += f" The range of valid IPs is {self._network}"
            raise _refused(service, "spec.clusterIPs", [address], text)
        if not self._addresses.take(number):
            text = f"failed to allocate IP {address}: provided IP is already allocated"
            raise _refused(service, "spec.clusterIPs", [address], text)
        return number

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

    def _claim_port(self, service: Object, index: int, number: int) -> int:
        field = f"spec.ports[{index}].nodePort"
        low, high = self.node_ports
        if number not in self._ports:
            text = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
            raise _refused(service, field, number, text)
        if not self._ports.take(number):
            raise _refused(service, field, number, "provided port is already allocated")
        return number

    def _no_longer_held(self, new: Object, old: Object | None) -> list[tuple[Pool, int]]:
        if old is None:
            return []
        gone = set(_addresses(old)) - set(_addresses(new))
        freed = [(self._addresses, int(ipaddress.ip_address(address))) for address in gone]
        freed += [(self._ports, port) for port in set(_node_ports(old)) - set(_node_ports(new))]
        return freed


def carry_over(new: Object, old: Object) -> None:
    """Before validation: a client that replaces a Service need not repeat what was allocated to it, and what
    only its old type had goes away with that type (upstream: patchAllocatedValues, dropTypeDependentFields).
    """
    spec, before = new.setdefault("spec", {}), old.get("spec") or {}
    outside = spec.get("type") in _TYPES_WITH_PORTS
    if spec.get("type") != "ExternalName" and not spec.get("clusterIP") and before.get("clusterIP"):
        spec["clusterIP"] = before["clusterIP"]
        spec["clusterIPs"] = list(before.get("clusterIPs") or [before["clusterIP"]])
    held = {_port_key(port): port["nodePort"] for port in before.get("ports") or () if port.get("nodePort")}
    given = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
    for port in spec.get("ports") or ():
        previous = held.get(_port_key(port))
        if not outside and previous and port.get("nodePort") == previous:
            del port["nodePort"]
        elif outside and previous and not port.get("nodePort") and previous not in given:
            port["nodePort"] = previous
    if spec.get("type") == before.get("type"):
        return
    dropped = ["loadBalancerClass", "allocateLoadBalancerNodePorts"] if spec["type"] != "LoadBalancer" else []
    if not outside:
        dropped += ["externalTrafficPolicy", "healthCheckNodePort"]
    if spec["type"] == "ExternalName":
        dropped += ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
    for field in dropped:
        if field in spec and spec[field] == before.get(field):
            del spec[field]


def _port_key(port: Object) -> tuple[str, int]:
    return port.get("protocol", "TCP"), port.get("port", 0)


def _addresses(service: Object) -> Iterable[str]:
    spec = service.get("spec") or {}
    found = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [address for address in found if address and address != "None"]


def _node_ports(service: Object) -> list[int]:
    spec = service.get("spec") or {}
    return [port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")]


def _refused(service: Object, field: str, value: object, text: str) -> StatusError:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    if isinstance(value, list):
        shown = "[" + ",".join(f'"{item}"' for item in value) + "]"
    kind = FORBIDDEN if value is None else INVALID
    cause = Cause(kind, field, f"Invalid value: {shown}: {text}")
    return invalid("Service", "", service["metadata"].get("name", ""), [cause])
