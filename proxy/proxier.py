"""Watch → changes → backends → kernel: the loop that keeps netfilter in step with the API.

One thread syncs; informers only mark that something changed. Changes that come within a moment go into one
sync, and after a sync the loop rests as long as the sync took, so that a flood of changes takes no more than
half of one core. In between the backends look whether somebody else changed their rules, and then
everything is looked at anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxy.backend import Backend, Outcome
from proxy.changes import Changes, Endpoint, Name, Served, ServicePort, Taken, View, view_of
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack, Flow, stale_entries, stale_flows
from proxy.errors import ProxyError
from proxy.healthcheck import Health, ServiceHealth
from proxy.metrics import Metrics
from proxy.topology import Place

log = logging.getLogger(__name__)

RETRY = 1.0


@dataclass(slots=True)
class AddressFamily:
    """IPv4 or IPv6: what changes, where it goes, and what is remembered from the last sync."""

    changes: Changes
    backend: Backend
    conntrack: Conntrack
    udp: dict[Name, Served] = field(default_factory=dict)
    started: bool = False

    @property
    def name(self) -> str:
        return f"IPv{self.backend.version}"


class Proxier:
    """Owns the kernel's rules. `run` blocks until `stop`; the rules stay when it ends.

    All families' changes set the same event, `changed`.
    """

    def __init__(
        self,
        config: ProxyConfig,
        families: Sequence[AddressFamily],
        changed: threading.Event,
        health: Health,
        *,
        metrics: Metrics | None = None,
        service_health: ServiceHealth | None = None,
        clock: Callable[[], float] = time.monotonic,
        gather: float = 0.01,
        after_first: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._families = families
        self._changed = changed
        self._health = health
        self._metrics = metrics or Metrics()
        self._service_health = service_health
        self._clock = clock
        self._gather = gather  # seconds that a first change waits for company
        self._after_first = after_first
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sync at once, then on every change, until stopped."""
        wait = 0.0
        while not self._stopped.is_set():
            changed = self._changed.wait(wait) if wait > 0 else True
            if self._stopped.is_set():
                return
            if changed:
                self._health.queued()
                self._metrics.set("sync_proxy_rules_last_queued_timestamp_seconds", time.time())
                self._stopped.wait(self._gather)
                wait, rest = self._attempt()
            else:
                wait, rest = self._attempt() if self.look() else (self._idle(), 0.0)
            self._stopped.wait(rest)

    def stop(self) -> None:
        self._stopped.set()
        self._changed.set()

    def _idle(self) -> float:
        return min(family.backend.look_every for family in self._families)

    def _attempt(self) -> tuple[float, float]:
        """One sync; answers how long to wait for the next change and how long to rest before."""
        started = self._clock()
        self._changed.clear()
        try:
            self.sync()
        except ProxyError as error:
            self._changed.set()
            log.error("Failed to sync rules err=%s retry_s=%.0f", error, RETRY)
            return RETRY, RETRY
        spent = self._clock() - started
        return self._idle(), max(self._config.min_sync_period, spent)

    def sync(self) -> str:
        """Bring the kernel to what is wanted now; says what was done. Raises ProxyError.

        When one family fails the others are synced all the same.
        """
        said: list[str] = []
        failed: ProxyError | None = None
        for family in self._families:
            try:
                said.append(self._sync(family).kind)
            except ProxyError as error:
                self._count_failure(family)
                failed = failed or error
        if failed is not None:
            raise failed
        self._health.synced()
        if self._after_first is not None:
            self._after_first()
            self._after_first = None
        kinds = [kind for kind in said if kind != "nothing"]
        return f"Synced {kinds[0]}" if kinds else "Nothing to do"

    def _sync(self, family: AddressFamily) -> Outcome:
        started = self._clock()
        taken = family.changes.take()
        if self._service_health is not None:
            self._service_health.change(family.backend.version, taken.services)
        before, after = _learn_udp(family, taken)
        outcome = family.backend.apply(taken.services, Place(self._config.hostname, family.changes.zone))
        family.conntrack.forget(_stale(family, before, after))
        self._report(family, taken, outcome, self._clock() - started)
        return outcome

    def _report(self, family: AddressFamily, taken: Taken, outcome: Outcome, spent: float) -> None:
        metrics, label, now = self._metrics, family.name, time.time()
        if taken.services:
            metrics.add("sync_proxy_rules_service_changes_total", len(taken.services))
        for moment in taken.triggered:
            metrics.observe("network_programming_duration_seconds", max(0.0, now - moment), ip_family=label)
        metrics.set("sync_proxy_rules_last_timestamp_seconds", now, ip_family=label)
        if outcome.kind == "nothing":
            return
        metrics.observe("sync_proxy_rules_duration_seconds", spent, ip_family=label)
        metrics.observe(f"sync_{outcome.kind}_proxy_rules_duration_seconds", spent, ip_family=label)
        metrics.rules(family.backend.title, label, family.backend.rules())
        log.info(
            "Synced rules backend=%s kind=%s services=%d repaired=%d ms=%.1f kernel_ms=%.1f",
            family.backend.title.replace(" ", "/"),
            outcome.kind,
            len(taken.services),
            outcome.repaired,
            spent * 1000,
            outcome.kernel * 1000,
        )

    def _count_failure(self, family: AddressFamily) -> None:
        family.started = False
        kind = "nftables_sync" if family.backend.title.startswith("nftables") else "iptables_restore"
        self._metrics.add(f"sync_proxy_rules_{kind}_failures_total")

    def look(self) -> bool:
        """Whether somebody else changed our rules, so that a sync is due."""
        due = False
        for family in self._families:
            try:
                reason = family.backend.look()
            except ProxyError as error:
                reason = str(error)
            if reason:
                due = True
                self._metrics.add("sync_proxy_rules_repairs_total")
                log.warning(
                    "Found rules changed by others backend=%s reason=%s action=full-sync",
                    family.backend.title.replace(" ", "/"),
                    reason,
                )
        return due


def _learn_udp(family: AddressFamily, taken: Taken) -> tuple[View, View]:
    """The changed Services' UDP ports, before and now."""
    before = [one for name in taken.services for one in family.udp.get(name, ())]
    after: list[tuple[ServicePort, tuple[Endpoint, ...]]] = []
    for name, served in taken.services.items():
        udp = tuple(one for one in served if one[0].protocol == "udp")
        if udp:
            family.udp[name] = udp
            after += udp
        else:
            family.udp.pop(name, None)
    return view_of(before), view_of(after)


def _stale(family: AddressFamily, before: View, after: View) -> list[Flow]:
    if family.started:
        return stale_flows(before, after)
    # Flows that still go where they should must live through our restart (and through a failed sync).
    family.started = True
    everything = view_of(one for served in family.udp.values() for one in served)
    return stale_entries(family.conntrack.listing(), everything)


def bridge_netfilter_problem(proc_sys: Path = Path("/proc/sys")) -> str | None:
    """None, or why pods on one bridge cannot reach each other through a Service.

    The answer of a pod on the same bridge is switched, not routed: unless bridged packets pass iptables,
    its source is never translated back to the Service's address and the client drops it.
    """
    switch = proc_sys / "net/bridge/bridge-nf-call-iptables"
    try:
        value = switch.read_text().strip()
    except OSError:
        return "br_netfilter is not loaded (modprobe br_netfilter)"
    if value != "1":
        return "net.bridge.bridge-nf-call-iptables is 0 (sysctl -w net.bridge.bridge-nf-call-iptables=1)"
    return None
