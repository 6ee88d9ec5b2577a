"""Services, EndpointSlices and Namespaces → the cluster's names, and the answer to one question about them.

Source: the Kubernetes DNS specification 1.1.0 (dns-based service discovery), with CoreDNS's choices where
it is silent: endpoints without a hostname are called by their address with dashes, and
`10-0-0-1.NAMESPACE.pod` is answered for any address as long as the namespace exists ("pods insecure").
Names here are tuples of lower-case labels below the cluster's domain, the leftmost first; nothing here
knows the wire.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
Labels = tuple[str, ...]
Key = tuple[str, str]

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
SCHEMA_VERSION = "1.1.0"


@dataclass(frozen=True, slots=True)
class Port:
    name: str
    protocol: str  # "tcp", "udp", "sctp"
    number: int


@dataclass(frozen=True, slots=True)
class Service:
    """`addresses` is empty for a headless Service, `external` the name that an ExternalName stands for."""

    namespace: str
    name: str
    addresses: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    external: str = ""

    @property
    def labels(self) -> Labels:
        return (self.name, self.namespace, "svc")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A ready endpoint of one slice; `label` is its hostname, or its address with dashes."""

    label: str
    address: str
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """`value` by type: A and AAAA an address, SRV (port, labels of the target), TXT a text."""

    type: str
    value: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a name: every record, or the name elsewhere that it stands for (ExternalName)."""

    exists: bool
    records: tuple[Record, ...] = ()
    alias: str = ""
    # Records of the SRV targets, so that a client need not ask again.
    extra: tuple[tuple[Labels, Record], ...] = ()


MISSING = Answer(False)
EMPTY = Answer(True)


class Names:
    """The index, fed by informers from any thread; `generation` grows when an answer may differ."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.generation = 0
        self._of_namespaces = 0  # the generation in which a namespace came or went last
        self._of: dict[Key, int] = {}  # … in which a Service or its endpoints changed last
        self._namespaces: set[str] = set()
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, tuple[Key, tuple[Endpoint, ...]]] = {}
        self._slices_of: dict[Key, set[Key]] = {}
        self._reverse: dict[str, dict[tuple[str, str, str], Labels]] = {}

    def namespace_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        name = new["metadata"]["name"]
        with self._lock:
            if (kind != "DELETED") == (name in self._namespaces):
                return
            (self._namespaces.discard if kind == "DELETED" else self._namespaces.add)(name)
            self.generation += 1
            self._of_namespaces = self.generation

    def service_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        key = (new["metadata"]["namespace"], new["metadata"]["name"])
        service = None if kind == "DELETED" else read_service(new)
        with self._lock:
            before = self._services.get(key)
            if service == before:
                return
            for address in before.addresses if before else ():
                self._unname(address, ("service", *key))
            if service is None:
                del self._services[key]
            else:
                self._services[key] = service
                for address in service.addresses:
                    self._name(address, ("service", *key), service.labels)
            self._changed(key)

    def slice_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        key = (new["metadata"]["namespace"], new["metadata"]["name"])
        value = None if kind == "DELETED" else read_slice(new)
        with self._lock:
            before = self._slices.pop(key, None)
            if value is not None:
                self._slices[key] = value
            if value == before:
                return
            if before is not None:
                self._slices_of[before[0]].discard(key)
                for endpoint in before[1]:
                    self._unname(endpoint.address, ("slice", *key))
            if value is not None:
                owner, endpoints = value
                self._slices_of.setdefault(owner, set()).add(key)
                for endpoint in endpoints:
                    labels = (endpoint.label, owner[1], owner[0], "svc")
                    self._name(endpoint.address, ("slice", *key), labels)
            for owner in {each[0] for each in (before, value) if each is not None}:
                self._changed(owner)

    def _changed(self, service: Key) -> None:
        self.generation += 1
        if service in self._services or service in self._slices_of:
            self._of[service] = self.generation
        else:  # nobody keeps count of what is gone: everything counts as changed
            self._of.pop(service, None)
            self._of_namespaces = self.generation

    def version(self, labels: Labels | None) -> int:
        """A number that is the same as long as the answer to a name is; None: to any name or address."""
        if labels is None or len(labels) < 3 or labels[-1] != "svc":
            return self.generation
        return max(self._of_namespaces, self._of.get((labels[-2], labels[-3]), 0))

    def _name(self, address: str, key: tuple[str, str, str], labels: Labels) -> None:
        self._reverse.setdefault(address, {})[key] = labels

    def _unname(self, address: str, key: tuple[str, str, str]) -> None:
        names = self._reverse.get(address, {})
        names.pop(key, None)
        if not names:
            self._reverse.pop(address, None)

    def names_of(self, address: str) -> tuple[Labels, ...]:
        """Where an address is known by name: a Service's own, or an endpoint of a headless Service."""
        with self._lock:
            names = list(self._reverse.get(address, {}).items())
            found = [
                labels
                for (kind, *_), labels in names
                if kind == "service" or self._headless((labels[2], labels[1]))
            ]
        return tuple(dict.fromkeys(sorted(found, key=len)))

    def _headless(self, key: Key) -> bool:
        service = self._services.get(key)
        return service is not None and not service.addresses and not service.external

    def lookup(self, labels: Labels) -> Answer:
        """Everything known of a name below the cluster's domain."""
        with self._lock:
            return self._lookup(labels)

    def _lookup(self, labels: Labels) -> Answer:
        if labels == ("dns-version",):
            return Answer(True, (Record("TXT", SCHEMA_VERSION),))
        if not labels or labels in (("svc",), ("pod",)):
            return EMPTY
        *rest, kind = labels
        if kind not in ("svc", "pod"):
            return MISSING
        namespace = rest.pop()
        if namespace not in self._namespaces:
            return MISSING
        if not rest:
            return EMPTY
        if kind == "pod":
            return _pod(rest)
        service = self._services.get((namespace, rest.pop()))
        if service is None:
            return MISSING
        if service.external:
            return MISSING if rest else Answer(True, alias=service.external)
        return self._below(service, tuple(rest))

    def _below(self, service: Service, rest: Labels) -> Answer:
        endpoints = () if service.addresses else tuple(self._endpoints(service))
        if not rest:
            addresses = service.addresses or [endpoint.address for endpoint in endpoints]
            ports = service.ports if service.addresses else ()
            return Answer(
                True,
                tuple(dict.fromkeys(_address(text) for text in addresses))
                + tuple(Record("SRV", (port.number, service.labels)) for port in ports),
                extra=tuple((service.labels, _address(text)) for text in service.addresses),
            )
        if len(rest) == 1 and not rest[0].startswith("_"):
            found = [_address(e.address) for e in endpoints if e.label == rest[0]]
            return Answer(True, tuple(dict.fromkeys(found))) if found else MISSING
        if len(rest) == 1:  # _tcp alone is a name that others lie below
            protocols = {p.protocol for p in service.ports} | {p.protocol for e in endpoints for p in e.ports}
            return EMPTY if rest[0][1:] in protocols else MISSING
        return self._srv(service, rest, endpoints) if len(rest) == 2 else MISSING

    @staticmethod
    def _srv(service: Service, rest: Labels, endpoints: tuple[Endpoint, ...]) -> Answer:
        """`_PORT._PROTOCOL`: one record for the Service, or one for each endpoint of a headless one."""
        wanted = (rest[0].removeprefix("_"), rest[1].removeprefix("_"))
        if not (rest[0].startswith("_") and rest[1].startswith("_")):
            return MISSING
        records, extra = [], []
        for port in service.ports if service.addresses else ():
            if (port.name, port.protocol) == wanted:
                records.append(Record("SRV", (port.number, service.labels)))
                extra += [(service.labels, _address(text)) for text in service.addresses]
        for endpoint in endpoints:
            for port in endpoint.ports:
                if (port.name, port.protocol) == wanted:
                    target = (endpoint.label, *service.labels)
                    records.append(Record("SRV", (port.number, target)))
                    extra.append((target, _address(endpoint.address)))
        return Answer(True, tuple(dict.fromkeys(records)), extra=tuple(extra)) if records else MISSING

    def _endpoints(self, service: Service) -> Iterator[Endpoint]:
        for key in sorted(self._slices_of.get((service.namespace, service.name), ())):
            yield from self._slices[key][1]


def read_service(body: Object) -> Service:
    """PURE: what of a Service makes names."""
    spec, meta = body.get("spec") or {}, body["metadata"]
    external = spec.get("externalName") or "" if spec.get("type") == "ExternalName" else ""
    texts = [] if external else list(spec.get("clusterIPs") or ()) or [spec.get("clusterIP")]
    ports = [(p.get("name") or "", p.get("protocol") or "TCP", p["port"]) for p in spec.get("ports") or ()]
    return Service(
        namespace=meta["namespace"],
        name=meta["name"],
        addresses=tuple(canonical(text) for text in texts if text and text != "None"),
        ports=tuple(Port(name.lower(), protocol.lower(), int(number)) for name, protocol, number in ports),
        external=external.rstrip(".").lower(),
    )


def read_slice(body: Object) -> tuple[Key, tuple[Endpoint, ...]] | None:
    """PURE: the ready endpoints of a slice and whose they are; None where it names none."""
    meta = body["metadata"]
    service = (meta.get("labels") or {}).get(SERVICE_NAME_LABEL)
    if not service or body.get("addressType") not in ("IPv4", "IPv6"):
        return None
    ports = tuple(
        Port((p.get("name") or "").lower(), (p.get("protocol") or "TCP").lower(), int(p["port"]))
        for p in body.get("ports") or ()
        if p.get("port") is not None
    )
    found = []
    for entry in body.get("endpoints") or ():
        # Absent means ready. The endpoint controller says ready for publishNotReadyAddresses.
        if (entry.get("conditions") or {}).get("ready") is False:
            continue
        for text in entry.get("addresses") or ():
            address = canonical(text)
            label = (entry.get("hostname") or dashed(address)).lower()
            found.append(Endpoint(label, address, ports))
    return (meta["namespace"], service), tuple(found)


def canonical(text: str) -> str:
    """The one spelling of an address, by which it is looked up."""
    return str(ipaddress.ip_address(text))


def dashed(address: str) -> str:
    """An address as one label: 10-244-0-5, fd00--5. A label may not begin or end with a dash (RFC 1123)."""
    text = address.replace(".", "-").replace(":", "-")
    return f"0{text}" if text.startswith("-") else f"{text}0" if text.endswith("-") else text


def _pod(rest: list[str]) -> Answer:
    """`10-244-0-5.NAMESPACE.pod`: the address says itself where it points."""
    if len(rest) != 1:
        return MISSING
    for separator in (".", ":"):
        try:
            address = ipaddress.ip_address(rest[0].replace("-", separator))
        except ValueError:
            continue
        return Answer(True, (_address(str(address)),))
    return MISSING


def _address(text: str) -> Record:
    return Record("AAAA" if ":" in text else "A", text)
