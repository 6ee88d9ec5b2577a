"""Reads netfilter's and the network's state of this host, and asks the node's own API server for Services."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kubelet_py.cli import login
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.doctor import observe_machine
from kubelet_py.cli.doctor.netfilter import NetfilterFacts
from kubelet_py.cli.doctor.network import STUB_SOURCE, NetworkFacts
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.node import modules
from kubelet_py.paths import NodePaths

SYS = Path("/proc/sys/net")
NETWORKD = ("etc", "run", "usr/lib", "lib")


def netfilter(paths: NodePaths) -> NetfilterFacts:
    from proxy.iptables_backend import COMFORTABLE
    from proxy.modes import iptables_forward_policy

    root, settings = os.geteuid() == 0, node_settings.load(paths)
    version, problem = _iptables()
    other = _nft_variant() if "nf_tables" not in version else None
    tables, hidden = _legacy(root) if other is None else ((), other)
    tool = shutil.which("conntrack") or ""
    return NetfilterFacts(
        root=root,
        version=version,
        problem=problem,
        hidden=hidden,
        hidden_tables=tables,
        nftables=_nftables(root),
        forward_policy=iptables_forward_policy() if root and version else "",
        conntrack_tool=tool,
        conntrack_kernel=(SYS / "netfilter/nf_conntrack_max").exists() or modules.loadable("nf_conntrack"),
        bridge_call=_bridge_call(),
        firewalls=_firewalls(),
        mode=settings.proxy_mode if settings else "iptables",
        ports=_service_ports(paths),
        comfortable=COMFORTABLE,
    )


def _iptables() -> tuple[str, str]:
    """What `iptables --version` says, and what makes its programs unfit."""
    from proxy.errors import IptablesError
    from proxy.iptables import Iptables

    if shutil.which("iptables") is None or shutil.which("iptables-restore") is None:
        return "", ""
    done = subprocess.run(["iptables", "--version"], capture_output=True, text=True)
    try:
        Iptables()
    except IptablesError as error:
        return done.stdout.strip() or "?", str(error)
    return done.stdout.strip() or "?", ""


def _legacy(root: bool) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The legacy tables in use, and their chains with rules: python-iptables sees just those."""
    names = Path("/proc/net/ip_tables_names")
    if not root or not names.exists():
        return (), ()
    tables = tuple(names.read_text().split())
    if not tables:
        return (), ()
    try:
        import iptc
    except ImportError:
        return tables, None
    hidden = []
    try:
        for name in tables:
            table = iptc.Table(name)
            table.refresh()
            hidden += [f"{name}/{chain.name}" for chain in table.chains if chain.rules]
    except iptc.IPTCError:  # root without CAP_NET_ADMIN, as in many containers
        return tables, None
    return tables, tuple(hidden)


def _nft_variant() -> tuple[str, ...]:
    """Chains with rules made by iptables-nft, which iptables-legacy does not show."""
    program = shutil.which("iptables-nft-save")
    if program is None:
        return ()
    done = subprocess.run([program], capture_output=True, text=True)
    found, table = dict[str, None](), ""
    for line in done.stdout.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A "):
            found[f"{table}/{line.split()[1]}"] = None
    return tuple(found)


def _nftables(root: bool) -> str:
    if not root:
        return "not tried without root"
    from proxy.config import ProxyConfig
    from proxy.modes import nftables_refusal

    return nftables_refusal(ProxyConfig(), (4,))


def _bridge_call() -> str:
    file = SYS / "bridge/bridge-nf-call-iptables"
    if file.exists():
        return file.read_text().strip()
    return "module" if modules.loadable("br_netfilter") else ""


def _firewalls() -> tuple[str, ...]:
    found = []
    if "firewalld" in observe_machine.programs():
        found.append("firewalld")
    try:
        if "ENABLED=yes" in Path("/etc/ufw/ufw.conf").read_text().split():
            found.append("ufw")
    except OSError:
        pass
    return tuple(found)


def _service_ports(paths: NodePaths) -> int | None:
    """None where this machine has no node, or its API server does not answer."""
    from kubeclient.errors import KubeClientError
    from kubeclient.resources import SERVICES

    if not login.own_kubeconfig(paths).exists():
        return None
    try:
        client = login.client(paths, "doctor")
        services = client.list(SERVICES)["items"]
        client.close()
    except (KubeClientError, OSError):
        return None
    return sum(len(each["spec"].get("ports") or ()) for each in services)


def network(paths: NodePaths) -> NetworkFacts:
    settings = node_settings.load(paths)
    address, reason, refusal, others = _address(settings)
    resolv = _resolv_conf(settings)
    return NetworkFacts(
        forward=(SYS / "ipv4/ip_forward").read_text().strip(),
        sysctls_writable=os.access(SYS / "ipv4/ip_forward", os.W_OK) and not _read_only("/proc/sys"),
        rp_filter={
            folder.name: (folder / "rp_filter").read_text().strip()
            for folder in (SYS / "ipv4/conf").iterdir()
        },
        address=address,
        reason=reason,
        refusal=refusal,
        others=others,
        known=settings is not None,
        resolv_conf=resolv,
        servers=_servers(resolv),
        stub_source=os.path.exists(STUB_SOURCE),
        networkd=_networkd(),
    )


def _address(settings: NodeSettings | None) -> tuple[str, str, str, int]:
    """Address, reason, refusal, and how many others there are; as the next start would choose."""
    from kubelet_py.cli.settings import CLUSTER_CIDR, SettingsError, versions_of
    from kubelet_py.node.addresses import NoAddress, choose_node_addresses

    asked = (settings.asked_ip, settings.node_interface) if settings else ("", "")
    joined = settings is not None and bool(settings.server)
    if settings is not None and joined and not any(asked):
        asked = (settings.node_ip, "")
    try:
        versions = versions_of(settings.cluster_cidr if settings else CLUSTER_CIDR)
        found = choose_node_addresses(*asked, versions=versions, alone=not joined)
    except (NoAddress, SettingsError) as error:
        return "", "", str(error), 0
    shown = ", ".join(f"{one.address} ({one.interface})" for one in found)
    return shown, found[0].reason, "", len(found[0].others)


def _resolv_conf(settings: NodeSettings | None) -> str:
    from kubelet_py.config import Config, load
    from kubelet_py.errors import ConfigError

    if settings is None or not settings.kubelet_config:
        return Config().resolv_conf
    try:
        return load(Path(settings.kubelet_config)).resolv_conf
    except (ConfigError, OSError):
        return Config().resolv_conf


def _servers(file: str) -> tuple[str, ...]:
    try:
        lines = Path(file).read_text().splitlines() if file else []
    except OSError:
        return ()
    words = [line.split() for line in lines]
    return tuple(each[1] for each in words if len(each) > 1 and each[0] == "nameserver")


def _read_only(place: str) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _networkd() -> Mapping[str, str]:
    """The .network files that count: of one name the first folder's, as systemd.network(5) says."""
    if "systemd-network" not in observe_machine.programs():  # comm has 15 letters
        return {}
    found: dict[str, Path] = {}
    for folder in NETWORKD:
        for file in sorted(Path("/", folder, "systemd/network").glob("*.network")):
            found.setdefault(file.name, file)
    return {str(file): file.read_text(errors="replace") for file in found.values() if file.is_file()}
