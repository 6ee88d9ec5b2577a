"""Configuration and results of CNI as frozen values, readable and writable in every version we speak.

A result has had four shapes: 0.3.x and 0.4.0 name the IP family of each address, 1.0.0 dropped that,
1.1.0 added mtu, socketPath and pciID to interfaces and mtu, advmss, priority, table and scope to
routes. Inside the room there is one shape (1.1.0's); the version matters only at the border.
Source: CNI SPEC 1.1.0, section 5, and its predecessors.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from cni.errors import BadEnvironment, DecodeFailure, IncompatibleVersion, InvalidConfig
from cni.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Config = Mapping[str, Any]

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = SUPPORTED_VERSIONS[-1]

_NOTHING: Mapping[str, Any] = {}
_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")


@frozen
class Interface:
    """A link; `sandbox` is the netns path of the container's end and empty for the host's end."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    extra: Mapping[str, Any] = _NOTHING


@frozen
class IP:
    """`address` with prefix length ("10.244.1.5/24"); `interface` is an index into Result.interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


@frozen
class Route:
    """`dst` is a prefix; without `gw` the gateway of an address of the same family serves."""

    dst: str
    gw: str = ""
    extra: Mapping[str, int] = _NOTHING


@frozen
class DNS:
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {}
        if self.nameservers:
            body["nameservers"] = list(self.nameservers)
        if self.domain:
            body["domain"] = self.domain
        if self.search:
            body["search"] = list(self.search)
        if self.options:
            body["options"] = list(self.options)
        return body

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> DNS:
        return DNS(
            nameservers=tuple(body.get("nameservers") or ()),
            domain=str(body.get("domain") or ""),
            search=tuple(body.get("search") or ()),
            options=tuple(body.get("options") or ()),
        )


@frozen
class Result:
    """What an attachment consists of, as ADD answers it."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()

    def to_json(self, version: str) -> dict[str, Any]:
        """The result in the shape of `version`, one of SUPPORTED_VERSIONS."""
        body: dict[str, Any] = {"cniVersion": version}
        if self.interfaces:
            body["interfaces"] = [_interface_json(i, version) for i in self.interfaces]
        if self.ips:
            body["ips"] = [_ip_json(ip, version) for ip in self.ips]
        if self.routes:
            body["routes"] = [_route_json(r, version) for r in self.routes]
        body["dns"] = self.dns.to_json()
        return body

    @staticmethod
    def from_json(body: Any) -> Result:
        """Read a result of any supported version. Raises DecodeFailure on a wrong shape."""
        if not isinstance(body, Mapping):
            raise DecodeFailure("Could not read the result: it is not a JSON object")
        require_version(body)
        try:
            return Result(
                interfaces=tuple(_interface(i) for i in body.get("interfaces") or ()),
                ips=tuple(_ip(ip) for ip in body.get("ips") or ()),
                routes=tuple(_route(r) for r in body.get("routes") or ()),
                dns=DNS.from_json(body.get("dns") or {}),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DecodeFailure("Could not read the result", repr(error)) from error


@frozen
class Request:
    """One call of a plugin: the environment's variables and the configuration from stdin.

    `netns` is empty when the runtime no longer has the namespace (allowed on DEL and GC).
    `args` are CNI_ARGS' pairs, `path` the folders of CNI_PATH in order. A caller in this process that goes on
    while the plugin still has something to finish gives a list for `unfinished`, and calls what it then holds
    before it relies on the result. It also gives the previous plugin's result as `previous`, the value
    itself; from a process that comes as the configuration's prevResult.
    """

    command: str
    config: Config
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Mapping[str, str] = _NOTHING
    path: tuple[str, ...] = ()
    unfinished: list[Callable[[], object]] | None = None
    previous: Result | None = None

    @property
    def network(self) -> str:
        return str(self.config.get("name") or "")

    @property
    def version(self) -> str:
        return str(self.config.get("cniVersion") or "0.3.1")

    @property
    def prev_result(self) -> Result | None:
        if self.previous is not None:
            return self.previous
        body = self.config.get("prevResult")
        return Result.from_json(body) if body else None


def require_version(body: Mapping[str, Any]) -> str:
    """The cniVersion of a configuration or result. Raises IncompatibleVersion when it is not ours."""
    version = body.get("cniVersion") or ""
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleVersion(
            f"Could not use CNI version {version or '(none)'}",
            f"this plugin speaks {', '.join(SUPPORTED_VERSIONS)}",
        )
    return str(version)


def check_container_id(value: str) -> str:
    if not _is_name(value):
        raise BadEnvironment(
            f"Could not accept CNI_CONTAINERID {value!r}",
            "it must start with a letter or digit and hold letters, digits, '_', '.' and '-' only",
        )
    return value


def _is_name(value: str) -> bool:
    """[A-Za-z0-9][A-Za-z0-9_.-]*, without `re`, whose import takes longer than Python's start."""
    plain = value.translate({ord(c): None for c in "_.-"})
    return value.isascii() and value[:1].isalnum() and plain.isalnum()


def check_network_name(value: str) -> str:
    if not _is_name(value):
        raise InvalidConfig(f"Could not accept network name {value!r}", "letters, digits, '_', '.' and '-'")
    return value


def check_ifname(value: str) -> str:
    """A name the kernel takes (dev_valid_name): at most 15 bytes, no '/', ':' or blank, not '.' or '..'."""
    bad = (
        not value
        or len(value.encode()) > 15
        or value in (".", "..")
        or any(c in "/:" or c.isspace() for c in value)
    )
    if bad:
        raise BadEnvironment(f"Could not accept CNI_IFNAME {value!r}", "no valid interface name")
    return value


def parse_args(text: str) -> dict[str, str]:
    """`A=1;B=2` of CNI_ARGS. Raises BadEnvironment when a pair has no '='."""
    pairs: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, separator, value = pair.partition("=")
        if not separator:
            raise BadEnvironment(f"Could not read CNI_ARGS: pair {pair!r} has no '='")
        pairs[key] = value
    return pairs


def folded(body: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of `names` in upper or lower case, as Go reads JSON and so every plugin of upstream's:
    containerd says "HostPort" for hostPort. The exact name has precedence."""
    if not hasattr(body, "items"):
        raise InvalidConfig(f"Could not read {body!r}: an object with {', '.join(names)} was expected")
    by_lower = {key.lower(): value for key, value in body.items()}
    found = {name: body.get(name, by_lower.get(name.lower())) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def listed(value: Any, what: str) -> list[Any]:
    """A list of the configuration; empty where there is none. Raises InvalidConfig."""
    if not isinstance(value, (list, tuple)) and value:
        raise InvalidConfig(f"Could not read {what} {value!r}: a list was expected")
    return list(value or ())


def valid_attachments(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a GC must leave alone. Raises InvalidConfig."""
    key = "cni.dev/valid-attachments"
    return [folded(one, ("containerID", "ifname")) for one in listed(config.get(key), key)]


def format_args(pairs: Mapping[str, str]) -> str:
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def negotiate(versions: Sequence[str]) -> str:
    """The highest of `versions` that we speak. Raises IncompatibleVersion when there is none."""
    common = [v for v in SUPPORTED_VERSIONS if v in versions]
    if not common:
        raise IncompatibleVersion(f"Could not find a common CNI version in {', '.join(versions) or '(none)'}")
    return common[-1]


def _interface(body: Mapping[str, Any]) -> Interface:
    known = {"name", "mac", "sandbox", "mtu"}
    return Interface(
        name=str(body["name"]),
        mac=str(body.get("mac") or ""),
        sandbox=str(body.get("sandbox") or ""),
        mtu=int(body.get("mtu") or 0),
        extra={key: value for key, value in body.items() if key not in known},
    )


def _interface_json(interface: Interface, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        body["mac"] = interface.mac
    if version == "1.1.0":
        if interface.mtu:
            body["mtu"] = interface.mtu
        body.update(interface.extra)
    if interface.sandbox:
        body["sandbox"] = interface.sandbox
    return body


def _ip(body: Mapping[str, Any]) -> IP:
    index = body.get("interface")
    address = str(ipaddress.ip_interface(body["address"]))
    gateway = str(ipaddress.ip_address(body["gateway"])) if body.get("gateway") else ""
    return IP(address=address, gateway=gateway, interface=None if index is None else int(index))


def _ip_json(ip: IP, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if version.startswith("0."):
        body["version"] = str(ipaddress.ip_interface(ip.address).version)
    if ip.interface is not None:
        body["interface"] = ip.interface
    body["address"] = ip.address
    if ip.gateway:
        body["gateway"] = ip.gateway
    return body


def _route(body: Mapping[str, Any]) -> Route:
    extra = {key: int(body[key]) for key in _ROUTE_NUMBERS if body.get(key) is not None}
    return Route(dst=str(ipaddress.ip_network(body["dst"])), gw=str(body.get("gw") or ""), extra=extra)


def _route_json(route: Route, version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"dst": route.dst}
    if route.gw:
        body["gw"] = route.gw
    if version == "1.1.0":
        body.update(route.extra)
    return body
