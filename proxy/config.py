"""KubeProxyConfiguration and flags → one frozen value.

Field names and defaults are upstream's (kubeproxy.config.k8s.io/v1alpha1), with two exceptions that are
on purpose: `iptables.minSyncPeriod` defaults to 0 (a change is programmed at once; syncs still never
take more than half of the time), and node ports never listen on 127.0.0.1 (see proxy/rules.py). A field we
do not implement is refused when it asks for something; nothing is read and ignored. It asks for nothing with
a zero value or upstream's own default: so kubeadm's file and that of `kube-proxy --write-config-to` will do.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxy.errors import ConfigError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
PRIMARY = "primary"
MODES = ("iptables", "nftables", "auto")
_TOP = {
    "apiVersion",
    "kind",
    "bindAddress",
    "clientConnection",
    "clusterCIDR",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables",
    "metricsBindAddress",
    "mode",
    "nftables",
    "nodePortAddresses",
}
# Upstream's defaults of what we do not have: who writes them out asks for nothing.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "clientConnection.burst": (10,),
    "clientConnection.contentType": ("application/vnd.kubernetes.protobuf",),
    "clientConnection.qps": (5,),
    "configSyncPeriod": ("15m", "15m0s"),
    "conntrack.maxPerCore": (32768,),
    "conntrack.min": (131072,),
    "conntrack.tcpCloseWaitTimeout": ("1h", "1h0m0s"),
    "conntrack.tcpEstablishedTimeout": ("24h", "24h0m0s"),
    "detectLocalMode": ("ClusterCIDR",),
    "ipvs.syncPeriod": ("30s",),
    "logging.flushFrequency": ("5s", 5_000_000_000),
    "logging.format": ("text",),
    "logging.verbosity": (1, 2, 3),  # from 4 on there is more to say: --v
    "logging.options.json.infoBufferSize": ("0",),
    "logging.options.text.infoBufferSize": ("0",),
    "oomScoreAdj": (-999,),
}
_NFTABLES = {"masqueradeAll", "masqueradeBit", "minSyncPeriod", "syncPeriod"}
_IPTABLES = {*_NFTABLES, "localhostNodePorts"}


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """`cluster_cidr` empty: traffic from anywhere counts as the cluster's own. Periods in seconds."""

    kubeconfig: str = ""
    hostname: str = ""
    cluster_cidr: str = ""
    healthz: tuple[str, int] | None = ("127.0.0.1", 10256)
    metrics: tuple[str, int] | None = ("127.0.0.1", 10249)
    mode: str = "iptables"
    masquerade_all: bool = False
    masquerade_bit: int = 14
    min_sync_period: float = 0.0
    sync_period: float = 30.0
    # The cluster's name server on this node: off without an address. Upstream has it apart (CoreDNS).
    dns_addresses: tuple[str, ...] = ()
    dns_port: int = 10053
    dns_service_addresses: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    service_cidr: str = ""
    node_port_addresses: tuple[str, ...] = ()
    external_ip_ranges: tuple[str, ...] = ()
    # Where it is written down, for the next boot, that there are NetworkPolicies: nowhere if empty.
    policy_file: str = ""

    @property
    def mark(self) -> str:
        """The packet mark for "masquerade me", as iptables writes it: 0x4000 by default."""
        return f"{1 << self.masquerade_bit:#x}"

    def cidr(self, version: int) -> str:
        """The pods' range of an address family, empty when none is known."""
        ranges = [text.strip() for text in self.cluster_cidr.split(",")]
        return next((r for r in ranges if r and (":" in r) == (version == 6)), "")

    def node_port_ranges(self, version: int) -> tuple[str, ...] | None:
        """Where node ports answer: None for all of the node's addresses, empty for none of the family."""
        if not self.node_port_addresses:
            return None
        return tuple(r for r in self.node_port_addresses if (":" in r) == (version == 6))

    @property
    def primary_only(self) -> bool:
        """Whether node ports are to answer on the addresses of the Node object (see node_addresses.py)."""
        return self.node_port_addresses == (PRIMARY,)

    def allows_external_ip(self, address: str) -> bool:
        """Whether a Service may claim this address by spec.externalIPs (off: CVE-2020-8554)."""
        if not self.external_ip_ranges:
            return False
        ip = ipaddress.ip_address(address)
        return any(ip in ipaddress.ip_network(r) for r in self.external_ip_ranges)

    def check(self) -> ProxyConfig:
        """The same value, if it can be used. Raises ConfigError."""
        if PRIMARY in self.node_port_addresses and not self.primary_only:
            raise ConfigError(f"Could not use nodePortAddresses: {PRIMARY!r} must stand alone")
        cidrs = [text.strip() for text in self.cluster_cidr.split(",")] if self.cluster_cidr else []
        for what, ranges in (
            ("cluster CIDR", cidrs),
            ("nodePortAddresses", () if self.primary_only else self.node_port_addresses),
            ("external IP range", self.external_ip_ranges),
        ):
            for text in ranges:
                try:
                    ipaddress.ip_network(text)
                except ValueError as error:
                    raise ConfigError(f"Could not use {what} {text!r}: {error}") from error
        if len(cidrs) != len({":" in text for text in cidrs}):
            raise ConfigError(f"Could not use cluster CIDR {self.cluster_cidr!r}: one per address family")
        if self.mode not in MODES:
            raise ConfigError(f"Could not use mode {self.mode!r}: it must be one of {', '.join(MODES)}")
        for address in (*self.dns_addresses, *self.dns_service_addresses):
            try:
                ipaddress.ip_address(address)
            except ValueError as error:
                raise ConfigError(f"Could not use DNS address {address!r}: {error}") from error
        if not 0 <= self.masquerade_bit <= 31:
            raise ConfigError(f"Could not use masqueradeBit {self.masquerade_bit}: it must be 0 to 31")
        if self.sync_period <= 0:
            raise ConfigError("Could not use syncPeriod: it must be above 0")
        return self


def read_file(path: Path, base: ProxyConfig) -> ProxyConfig:
    """`base` overlaid with the file's fields (YAML or JSON). Raises ConfigError naming the field."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"Could not read {path}: {error.strerror}") from error
    try:
        if text.lstrip().startswith("{"):
            body = json.loads(text)
        else:
            import yaml  # 15 ms and 2 MB that a proxy without a file need not pay

            body = yaml.safe_load(text)
    except Exception as error:
        raise ConfigError(f"Could not parse {path}: {error}") from error
    if not isinstance(body, Mapping):
        raise ConfigError(f"Could not parse {path}: it is not a mapping")
    return overlay(body, base)


def overlay(body: Mapping[str, Any], base: ProxyConfig) -> ProxyConfig:
    """PURE: `base` with the fields that a KubeProxyConfiguration sets."""
    if body.get("kind") != "KubeProxyConfiguration" or body.get("apiVersion") != (
        "kubeproxy.config.k8s.io/v1alpha1"
    ):
        raise ConfigError(
            "Could not use the file: it is no kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration"
        )
    _refuse_others(body, _TOP, "")
    if body.get("mode"):
        base = replace(base, mode=str(body["mode"]))
    section = body.get("iptables") or {}
    _refuse_others(section, _IPTABLES, "iptables.")
    if section.get("localhostNodePorts"):
        raise ConfigError(
            "Could not use iptables.localhostNodePorts: it needs route_localnet (CVE-2020-8558)"
        )
    _refuse_others(body.get("nftables") or {}, _NFTABLES, "nftables.")
    if base.mode == "nftables":
        section = body.get("nftables") or {}
    return _section(_general(base, body), section)


def _general(base: ProxyConfig, body: Mapping[str, Any]) -> ProxyConfig:
    result = base
    connection = body.get("clientConnection") or {}
    _refuse_others(connection, {"kubeconfig"}, "clientConnection.")
    if connection.get("kubeconfig"):
        result = replace(result, kubeconfig=str(connection["kubeconfig"]))
    if body.get("clusterCIDR"):
        result = replace(result, cluster_cidr=str(body["clusterCIDR"]))
    if body.get("hostnameOverride"):
        result = replace(result, hostname=str(body["hostnameOverride"]))
    # As upstream: an empty address in a file is the default one, only the flag switches a server off; and of
    # what family the proxy is says where its health and its metrics are to be asked.
    if body.get("bindAddress"):
        everywhere, here = _hosts(str(body["bindAddress"]))
        if result.healthz is not None:
            result = replace(result, healthz=(everywhere, result.healthz[1]))
        if result.metrics is not None:
            result = replace(result, metrics=(here, result.metrics[1]))
    if body.get("healthzBindAddress"):
        result = replace(result, healthz=parse_address(str(body["healthzBindAddress"])))
    if body.get("metricsBindAddress"):
        result = replace(result, metrics=parse_address(str(body["metricsBindAddress"])))
    if body.get("nodePortAddresses"):
        result = replace(result, node_port_addresses=tuple(map(str, body["nodePortAddresses"])))
    return result


def _section(result: ProxyConfig, section: Mapping[str, Any]) -> ProxyConfig:
    """The backend's own settings: `iptables` also for auto, `nftables` for that mode."""
    if section.get("masqueradeAll") is not None:
        result = replace(result, masquerade_all=bool(section["masqueradeAll"]))
    if section.get("masqueradeBit") is not None:
        result = replace(result, masquerade_bit=int(section["masqueradeBit"]))
    if section.get("minSyncPeriod"):
        result = replace(result, min_sync_period=duration(section["minSyncPeriod"]))
    if section.get("syncPeriod") and duration(section["syncPeriod"]):
        result = replace(result, sync_period=duration(section["syncPeriod"]))
    return result


def duration(text: Any) -> float:
    """Go's notation ("1m30s", "500ms") in seconds; "0" and "0s" are 0."""
    value = str(text)
    if value == "0":
        return 0.0
    if not value or _DURATION.sub("", value):
        raise ConfigError(f"Could not read duration {value!r} (as in 30s, 1m30s, 500ms)")
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(value))


def parse_address(text: str) -> tuple[str, int] | None:
    """ "host:port" or ":port"; an empty text switches the server off."""
    if not text:
        return None
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"Could not use address {text!r}: host:port is needed")
    return host.strip("[]") or "0.0.0.0", int(port)


def _hosts(text: str) -> tuple[str, str]:
    """The unspecified address of the same family, and loopback's. One of the node's own would be upstream's
    primary address, which here is the Node object's."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(f"Could not use bindAddress {text!r}: {error}") from error
    if not address.is_unspecified:
        advice = "0.0.0.0 or ::; the node's addresses are read from its Node"
        raise ConfigError(f"Could not use bindAddress {text!r}: not implemented ({advice})")
    return ("0.0.0.0", "127.0.0.1") if address.version == 4 else ("::", "::1")


def _refuse_others(section: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for key, value in section.items():
        field = _asking(value, prefix + key) if key not in known else ""
        if field:
            raise ConfigError(f"Could not use field {field}: not implemented")


def _asking(value: Any, field: str) -> str:
    """The field, or the one inside it, that asks for something; "" for zero values and upstream's defaults,
    which tools write out for fields nobody set."""
    if isinstance(value, Mapping):
        return next((found for key in value if (found := _asking(value[key], f"{field}.{key}"))), "")
    return "" if value in (None, "", 0, False, [], "0s", *_USUAL.get(field, ())) else field
