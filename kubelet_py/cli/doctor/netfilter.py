"""iptables and its two variants, nftables, conntrack, and who else writes rules. PURE.

A rule of the legacy variant is invisible to the nft one and the other way round, and the kernel obeys both.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubelet_py.cli.doctor.finding import DEGRADED, MISSING, OK, Finding


@dataclass(frozen=True, slots=True)
class NetfilterFacts:
    """`version` is iptables's own words, "" without it; `problem` what makes its programs unfit; `hidden` the
    chains with rules of the other variant, None where unknown, from `hidden_tables`. `nftables` is why the
    kernel takes no nftables rules, "" if it does. `bridge_call` is the sysctl's value, "module" where `up`
    would load it, "" without. `ports` counts the Services' ports, None where nobody could be asked."""

    root: bool
    version: str
    problem: str
    hidden: tuple[str, ...] | None
    hidden_tables: tuple[str, ...]
    nftables: str
    forward_policy: str
    conntrack_tool: str
    conntrack_kernel: bool
    bridge_call: str
    firewalls: tuple[str, ...]
    mode: str
    ports: int | None
    comfortable: int

    @property
    def variant(self) -> str:
        return "nft" if "nf_tables" in self.version else "legacy"


def judge(facts: NetfilterFacts) -> list[Finding]:
    return [
        iptables(facts),
        legacy_rules(facts),
        nftables(facts),
        services(facts),
        forward_policy(facts),
        conntrack(facts),
        bridge_netfilter(facts.bridge_call),
        firewalls(facts.firewalls),
    ]


def iptables(facts: NetfilterFacts) -> Finding:
    purpose = "Services and host ports"
    if not facts.version:
        return Finding("iptables", MISSING, "not on PATH", purpose, "apt-get install iptables")
    if facts.problem:
        return Finding(
            "iptables", MISSING, facts.problem, purpose, "update-alternatives --config iptables (one variant)"
        )
    return Finding("iptables", OK, facts.version, purpose)


def legacy_rules(facts: NetfilterFacts) -> Finding:
    purpose = "one set of rules, not two that contradict each other"
    if not facts.root:
        return Finding("legacy rules", DEGRADED, "not readable", purpose, "use sudo")
    if facts.variant == "legacy":
        if facts.hidden:
            found = f"legacy is the host's variant, and there are rules of nft's in {', '.join(facts.hidden)}"
            mend = "look with iptables-nft-save, move them to legacy"
            return Finding("legacy rules", DEGRADED, found, purpose, mend)
        return Finding("legacy rules", OK, "legacy is the host's variant, and nothing is hidden", purpose)
    if not facts.hidden_tables:
        return Finding("legacy rules", OK, "no legacy tables in use", purpose)
    if facts.hidden is None:
        found = f"not known; legacy tables: {', '.join(facts.hidden_tables)}"
        return Finding("legacy rules", DEGRADED, found, purpose, "look with iptables-legacy-save")
    if facts.hidden:
        found = f"rules in {', '.join(facts.hidden)}"
        mend = "look with iptables-legacy-save, move them to nft"
        return Finding("legacy rules", DEGRADED, found, purpose, mend)
    return Finding("legacy rules", OK, "none hidden", purpose)


def nftables(facts: NetfilterFacts) -> Finding:
    purpose = "NetworkPolicies, and Services with --proxy-mode nftables"
    if not facts.nftables:
        return Finding("nftables", OK, "the kernel takes our rules", purpose)
    state = MISSING if facts.mode == "nftables" else DEGRADED
    return Finding("nftables", state, facts.nftables, purpose, "modprobe nf_tables, or a kernel with it")


def services(facts: NetfilterFacts) -> Finding:
    """docs/benchmarks.md: the nft variant reads what it touches back, and collapses past some thousands."""
    purpose = "changes of Services that reach the kernel within a second"
    if facts.ports is None:
        found = f"not asked (no API server); the nft variant of iptables carries about {facts.comfortable}"
        return Finding("services", OK, found if facts.variant == "nft" else "not asked", purpose)
    found = f"{facts.ports} ports by {facts.mode}"
    if facts.mode == "iptables" and facts.variant == "nft" and facts.ports > facts.comfortable:
        found += f", and the nft variant of iptables carries about {facts.comfortable}"
        return Finding("services", DEGRADED, found, purpose, "kubelet-py up --proxy-mode nftables")
    return Finding("services", OK, found, purpose)


def forward_policy(facts: NetfilterFacts) -> Finding:
    purpose = "packets between pods, nodes and the world"
    if facts.forward_policy != "DROP":
        return Finding("FORWARD policy", OK, facts.forward_policy or "ACCEPT", purpose)
    if facts.mode == "nftables":
        found = "DROP, which rules of nftables cannot overrule"
        return Finding("FORWARD policy", DEGRADED, found, purpose, "iptables -P FORWARD ACCEPT")
    return Finding("FORWARD policy", OK, "DROP; the proxy's rules accept the pods' packets", purpose)


def conntrack(facts: NetfilterFacts) -> Finding:
    if not facts.conntrack_kernel:
        purpose = "answers that find their way back through a Service"
        return Finding("conntrack", MISSING, "not in the kernel", purpose, "modprobe nf_conntrack")
    purpose = "cutting UDP flows to endpoints that are gone"
    if facts.conntrack_tool:
        return Finding("conntrack", OK, facts.conntrack_tool, purpose)
    return Finding("conntrack", DEGRADED, "not on PATH", purpose, "apt-get install conntrack")


def bridge_netfilter(found: str) -> Finding:
    """Without br_netfilter an answer between two pods of one bridge never meets the rules that undo DNAT."""
    purpose = "Services between pods of one node"
    if found == "module":
        return Finding("br_netfilter", OK, "a module that `up` loads", purpose)
    if not found:
        return Finding("br_netfilter", DEGRADED, "not loaded", purpose, "modprobe br_netfilter")
    if found == "1":
        return Finding("br_netfilter", OK, "bridge-nf-call-iptables=1", purpose)
    return Finding("br_netfilter", OK, f"bridge-nf-call-iptables={found}; `up` sets it", purpose)


def firewalls(found: tuple[str, ...]) -> Finding:
    purpose = "packets from and to pods, and port 10250"
    if not found:
        return Finding("firewalls", OK, "none found", purpose)
    hints = {
        "firewalld": "firewall-cmd --permanent --zone=trusted --add-interface=kpy0, with the other nodes' "
        "and the pods' ranges as --add-source, then --reload",
        "ufw": "ufw default allow routed, and ufw allow from the other nodes' and the pods' ranges",
    }
    mend = "; ".join(hints[name] for name in found if name in hints)
    return Finding("firewalls", DEGRADED, f"{', '.join(found)} active", purpose, mend)
