"""Which backend the proxy uses, and getting rid of what the other one left.

`auto` takes nftables wherever the kernel accepts our rules, with one exception: where iptables' FORWARD chain
drops by policy (Docker does that), accepting a packet in a table of our own does not save it from the other
table's drop, whereas rules inside iptables' chain do. Source: nft(8), "verdict statements": accept ends one
base chain only.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from proxy.backend import Backend
from proxy.config import ProxyConfig
from proxy.errors import IptablesError, ProxyError
from proxy.iptables import Iptables, ours
from proxy.iptables_backend import IptablesBackend, clean_up
from proxy.nfnetlink import NfTables, NftError
from proxy.nfobjects import Table, add_table, delete_table
from proxy.nftables import NftablesBackend
from proxy.nftframe import Frame
from proxy.policy.enforcer import clean_up as clean_up_policies

log = logging.getLogger(__name__)

PROBE = "kubelet-py-probe"


@dataclass(frozen=True, slots=True)
class Choice:
    mode: str
    reason: str


def choose(mode: str, refusal: Callable[[], str], forward_policy: Callable[[], str]) -> Choice:
    """The mode for "iptables", "nftables" or "auto". Raises ProxyError when what was asked for cannot be.

    `refusal` says why the kernel does not take nftables rules (empty: it does), `forward_policy` is that
    of iptables' FORWARD chain, empty where there is none.
    """
    if mode == "iptables":
        return Choice("iptables", "configured")
    refused = refusal()
    if mode == "nftables":
        if refused:
            raise ProxyError(f"{refused} (use --proxy-mode iptables)")
        return Choice("nftables", "configured")
    if refused:
        return Choice("iptables", f"the kernel does not take nftables rules: {refused}")
    policy = forward_policy()
    if policy == "DROP":
        return Choice(
            "iptables", "the policy of iptables' FORWARD chain is DROP, which nftables cannot overrule"
        )
    return Choice("nftables", "the kernel takes nftables rules")


def nftables_refusal(config: ProxyConfig, versions: Sequence[int]) -> str:
    """Why the kernel would not take our table: tried whole, and undone in the same transaction."""
    if config.primary_only:  # not known yet, and of the same kind as any address
        config = replace(config, node_port_addresses=())
    try:
        with NfTables() as kernel:
            for version in versions:
                frame = Frame(config, version)
                frame.table = Table(frame.table.family, PROBE)
                kernel.commit([*frame.base(), *frame.fixed_rules(), delete_table(frame.table)])
    except NftError as error:
        return str(error)
    return ""


def iptables_forward_policy() -> str:
    """The policy of FORWARD, empty without iptables."""
    try:
        saved = Iptables().save()
    except IptablesError:
        return ""
    return saved["filter"].policies.get("FORWARD", "") if "filter" in saved else ""


def versions(config: ProxyConfig, if_inet6: str = "/proc/net/if_inet6") -> list[int]:
    """Address families to serve: those of the cluster CIDR, or all the host has when none is given."""
    found = [4] if not config.cluster_cidr or config.cidr(4) else []
    if os.path.exists(if_inet6) and (not config.cluster_cidr or config.cidr(6)):
        found.append(6)
    if not found:
        raise ProxyError(f"Could not serve cluster CIDR {config.cluster_cidr}: the host has no IPv6")
    return found


def backends(mode: str, config: ProxyConfig, versions: Sequence[int]) -> list[Backend]:
    """One per address family. Raises ProxyError where a tool is missing."""
    if mode == "nftables":
        return [NftablesBackend(config, NfTables(), version) for version in versions]
    return [IptablesBackend(config, Iptables(version=version)) for version in versions]


def remove_iptables(*, tables: bool = False) -> bool:
    """Remove what the iptables backend left; whether there was anything. Without iptables there is not.

    With `tables` empty tables go too where nothing of ours was left: the CNI plugins' rules may have been the
    last in them.
    """
    found = False
    for version in (4, 6):
        try:
            tool = Iptables(version=version)
        except IptablesError:
            continue
        if any(ours(chain) for table in tool.save().values() for chain in table.chains):
            clean_up(tool)
            found = True
        elif tables:
            tool.drop_empty_tables()
    return found


def remove_nftables() -> bool:
    """Remove what the nftables backend left; whether there was anything."""
    found = False
    try:
        with NfTables() as kernel:
            there = kernel.tables()
            for version in (4, 6):
                table = Frame(ProxyConfig(), version).table
                if table in there:
                    kernel.commit([add_table(table), delete_table(table)])
                    found = True
    except NftError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return found


def remove_policies() -> bool:
    """Remove what NetworkPolicies left; whether there was anything."""
    try:
        with NfTables() as kernel:
            return clean_up_policies(kernel)
    except NftError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return False


def remove_other(mode: str) -> None:
    """After the first sync of `mode`: rules of the other backend would only be passed in vain."""
    other, remove = ("iptables", remove_iptables) if mode == "nftables" else ("nftables", remove_nftables)
    try:
        if remove():
            log.info("Removed rules of the other mode mode=%s", other)
    except ProxyError as error:
        log.error("Failed to remove rules of the other mode mode=%s err=%s", other, error)
