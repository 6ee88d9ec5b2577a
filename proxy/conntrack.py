"""Forgetting UDP flows whose target is gone.

Address translation is decided once per flow and remembered by conntrack. TCP connections end; a UDP
client that keeps its port would send to a dead endpoint for ever, or, where there was no endpoint, keep
its untranslated entry. Source: upstream's pkg/proxy/conntrack/cleanup.go.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.changes import ServicePort, View
from proxy.topology import reachable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flow:
    """UDP entries to `address` (empty: any) and `port`; `target` empty: wherever they were translated to."""

    address: str
    port: int
    target: str = ""

    def words(self) -> list[str]:
        words = ["-D", "-p", "udp", "--orig-port-dst", str(self.port)]
        if self.address:
            words += ["--orig-dst", self.address]
        if self.target:
            words += ["--dst-nat", self.target]
        return words


def stale_flows(old: View, new: View) -> list[Flow]:
    """PURE: what to forget after the rules went from `old` to `new`."""
    before = {p.key: p for p in old.services if p.protocol == "udp"}
    after = {p.key: p for p in new.services if p.protocol == "udp"}
    flows: list[Flow] = []
    for key in {**before, **after}:
        was, now = before.get(key), after.get(key)
        old_ips = _ips(old, was) if was else set()
        new_ips = _ips(new, now) if now else set()
        for port in (was, now) if was != now else (now,):
            if port is None:
                continue
            for ip in sorted(old_ips - new_ips):
                flows += _flows(port, ip)
            if not old_ips and new_ips:
                # Packets sent while nobody served left entries without translation.
                flows += _flows(port, "")
    return list(dict.fromkeys(flows))


def stale_entries(listing: str, view: View) -> list[Flow]:
    """PURE: of `conntrack -L -p udp`, the flows to a Service of the view that go to none of its endpoints.

    What changed while no proxy ran is found this way. A line holds the addresses twice, as sent and as
    answered; the answer's sender is where the flow really goes.
    """
    served: dict[tuple[str, int], set[str]] = {}
    for port in view.services:
        if port.protocol == "udp":
            for flow in _flows(port, ""):
                served[flow.address, flow.port] = _ips(view, port)
    found: list[Flow] = []
    for line in listing.splitlines():
        words = [word.partition("=")[::2] for word in line.split() if "=" in word]
        senders = [value for key, value in words if key == "src"]
        first = dict(reversed(words))  # the earliest of each key wins
        if len(senders) != 2 or not first.get("dport", "").isdigit():
            continue
        address, number, target = first.get("dst", ""), int(first["dport"]), senders[1]
        if target == address:
            # Not translated: sent while nobody served, or not for a Service at all.
            if served.get((address, number)):
                found.append(Flow(address, number))
            continue
        for name in ((address, number), ("", number)):
            if name in served and target not in served[name]:
                found.append(Flow(*name, target))
                break
            if name in served:
                break
    return list(dict.fromkeys(found))


class Conntrack:
    """The host's `conntrack` tool; without it entries expire by themselves (30 to 180 s), said once."""

    def __init__(self, version: int = 4) -> None:
        self._family = ("-f", f"ipv{version}")
        self._program = shutil.which("conntrack") or shutil.which("conntrack", path="/usr/sbin:/sbin")
        self._said = False

    def listing(self) -> str:
        """All UDP flows as the tool prints them; empty without the tool."""
        if self._program is None:
            return ""
        done = subprocess.run(
            [self._program, "-L", "-p", "udp", *self._family], capture_output=True, text=True, check=False
        )
        return done.stdout

    def forget(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            if self._program is None:
                if not self._said:
                    log.warning(
                        "Left stale UDP flows to expire reason=no-conntrack fix=apt-get-install-conntrack"
                    )
                    self._said = True
                return
            command = [self._program, *flow.words(), *self._family]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            # Status 1 with "0 flow entries" is the usual case: nothing matched.
            if done.returncode != 0 and "0 flow entries" not in done.stderr:
                log.warning("Failed to delete UDP flows port=%d err=%s", flow.port, done.stderr.strip())


def _ips(view: View, port: ServicePort) -> set[str]:
    found = reachable(port, view.of(port))
    return {e.ip for e in (*found.cluster, *found.local)}


def _flows(port: ServicePort, target: str) -> list[Flow]:
    flows = [Flow(ip, port.port, target) for ip in (port.cluster_ip, *port.ingress_ips, *port.external_ips)]
    if port.node_port:
        flows.append(Flow("", port.node_port, target))
    return flows
