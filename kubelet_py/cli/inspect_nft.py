"""What nftables holds for one Service (the proxy's nftables mode) and for one pod (NetworkPolicies).

A Service has no chain of its own there: it is elements of maps, found by its addresses and ports. A pod that
a policy selects has a chain for each direction; its last rule counts what was refused. The chains are shown
in `nft`'s own words.
"""

from __future__ import annotations

import errno
import ipaddress
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Any

from kubelet_py.cli.errors import CommandError
from proxy.nfnetlink import NfTables, NftError
from proxy.nfobjects import Element, Family, Table
from proxy.nftframe import TABLE as PROXY_TABLE
from proxy.policy.table import TABLE as POLICY_TABLE
from proxy.policy.table import pod_chains

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def service_elements(service: dict[str, Any]) -> list[str]:
    """Lines such as "service-ips: 10.96.0.50 . tcp . 80 → goto cluster-2"; empty in iptables mode."""
    try:
        with NfTables() as kernel:
            there = kernel.tables()
            return [
                line
                for family, size in ((Family.IP, 4), (Family.IP6, 16))
                if Table(family, PROXY_TABLE) in there
                for line in _lines(kernel, Table(family, PROXY_TABLE), service, size)
            ]
    except NftError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
            return []
        raise CommandError(f"{error} (this needs root)") from error


def _lines(kernel: NfTables, table: Table, service: dict[str, Any], size: int) -> Iterator[str]:
    keys = list(_keys(service, size))
    for name in sorted(kernel.sets(table)):
        places = "nodeport" in name
        for element in kernel.elements(table, name):
            for key, is_port, title in keys:
                if is_port == places and element.key.startswith(key):
                    yield f"{name}: {title}{_rest(element, key)}{_value(element, size)}"


def _keys(service: dict[str, Any], size: int) -> Iterator[tuple[bytes, bool, str]]:
    """The beginnings of keys that stand for the Service: its addresses with each port, and its node ports."""
    spec = service["spec"]
    entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    texts = [*(spec.get("clusterIPs") or [spec.get("clusterIP")]), *(spec.get("externalIPs") or ())]
    texts += [entry["ip"] for entry in entries if entry.get("ip")]
    packed = [ipaddress.ip_address(text).packed for text in texts if text and text != "None"]
    for port in spec.get("ports") or ():
        protocol = port.get("protocol") or "TCP"
        tail = struct.pack("=B3x", _PROTOCOLS[protocol])
        for address in packed:
            if len(address) == size:
                title = f"{ipaddress.ip_address(address)} . {protocol.lower()} . {port['port']}"
                yield address + tail + struct.pack("!H2x", port["port"]), False, title
        if port.get("nodePort"):
            title = f"{protocol.lower()} . {port['nodePort']}"
            yield tail + struct.pack("!H2x", port["nodePort"]), True, title


def _rest(element: Element, key: bytes) -> str:
    """What stands in the key behind address and port: an endpoint's number, or a client's range."""
    rest = element.key[len(key) :]
    return f" . {struct.unpack('=I', rest)[0]}" if len(rest) == 4 and not element.key_end else ""


def _value(element: Element, size: int) -> str:
    if element.verdict is not None:
        return f" → {element.verdict.code.name.lower()} {element.verdict.chain}".rstrip()
    if len(element.data) < size + 2:
        return ""
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    address = socket.inet_ntop(family, element.data[:size])
    return f" → {address} : {int.from_bytes(element.data[size : size + 2], 'big')}"


def pod_policies(uid: str) -> dict[str, list[str]]:
    """The chains that judge the pod, in nft's words; empty where no policy selects it."""
    nft = shutil.which("nft")
    found: dict[str, list[str]] = {}
    for direction, chain in pod_chains(uid).items():
        if nft is None:
            return {}
        command = [nft, "list", "chain", "inet", POLICY_TABLE.name, chain]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            lines = [line.strip() for line in done.stdout.splitlines()]
            found[direction] = [line for line in lines if line not in ("}", "") and not line.endswith("{")]
    return found
