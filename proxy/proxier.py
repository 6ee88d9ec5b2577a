"""Watch → changes → rules → kernel: the loop that keeps netfilter in step with the API.

One thread syncs; informers only mark that something changed. Changes that come within a few milliseconds
go into one sync, and after a sync the loop rests as long as the sync took, so that a flood of changes
takes no more than half of one core. Every `sync_period` the canary chains are looked at: when somebody
flushed the tables, everything is written anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from proxy.changes import Changes, View
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack, Flow, stale_entries, stale_flows
from proxy.errors import IptablesError
from proxy.healthcheck import Health
from proxy.iptables import Saved, cleanup_script, full_script, partial_script
from proxy.rules import CANARY, Ruleset, build

log = logging.getLogger(__name__)

GATHER = 0.01  # seconds that a first change waits for company
RETRY = 1.0


class Backend(Protocol):
    """What of proxy.iptables.Iptables the proxier uses."""

    def save(self) -> Saved: ...
    def restore(self, script: str) -> None: ...
    def has_chains(self, chain: str) -> bool: ...


class Proxier:
    """Owns the kernel's rules. `run` blocks until `stop`; the rules stay when it ends."""

    def __init__(
        self,
        config: ProxyConfig,
        changes: Changes,
        backend: Backend,
        conntrack: Conntrack,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._changes = changes
        self._backend = backend
        self._conntrack = conntrack
        self._health = health
        self._clock = clock
        self._rules: Ruleset | None = None  # what the kernel holds; None: unknown
        self._view: View | None = None
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sync at once, then on every change, until stopped."""
        wait = 0.0
        while not self._stopped.is_set():
            changed = self._changes.changed.wait(wait) if wait > 0 else True
            if self._stopped.is_set():
                return
            if changed:
                self._health.queued()
                self._stopped.wait(GATHER)
            else:
                self._look_at_canary()
            wait, rest = self._attempt()
            self._stopped.wait(rest)

    def stop(self) -> None:
        self._stopped.set()
        self._changes.changed.set()

    def _attempt(self) -> tuple[float, float]:
        """One sync; answers how long to wait for the next change and how long to rest before."""
        started = self._clock()
        self._changes.changed.clear()
        try:
            self.sync()
        except IptablesError as error:
            self._rules = None
            self._changes.changed.set()
            log.error("Failed to sync rules err=%s retry_s=%.0f", error, RETRY)
            return RETRY, RETRY
        spent = self._clock() - started
        return self._config.sync_period, max(self._config.min_sync_period, spent)

    def sync(self) -> str:
        """Bring the kernel to the present view; says what was done. Raises IptablesError."""
        started = self._clock()
        view = self._changes.view()
        wanted = build(view, self._config)
        kind = "full" if self._rules is None else "partial"
        if self._rules is None:
            script = full_script(wanted, self._backend.save())
        else:
            script = partial_script(self._rules, wanted)
        if script:
            self._backend.restore(script)
        self._rules = wanted
        self._conntrack.forget(self._stale(view))
        self._view = view
        self._health.synced()
        if not script:
            return "Nothing to do"
        spent = (self._clock() - started) * 1000
        rules = sum(len(r) for table in wanted.values() for r in table.values())
        log.info("Synced rules kind=%s ports=%d rules=%d ms=%.0f", kind, len(view.services), rules, spent)
        return f"Synced {kind}"

    def _stale(self, view: View) -> list[Flow]:
        if self._view is None:
            # Flows that still go where they should must live through our restart.
            return stale_entries(self._conntrack.listing(), view)
        return stale_flows(self._view, view)

    def _look_at_canary(self) -> None:
        if self._rules is not None and not self._backend.has_chains(CANARY):
            log.warning("Found rules flushed by somebody else action=full-sync")
            self._rules = None


class Cleaner(Backend, Protocol):
    def drop_empty_tables(self) -> None: ...


def clean_up(backend: Cleaner) -> None:
    """Remove our chains and the jumps to them, and tables that are empty then; nothing of anyone else's."""
    script = cleanup_script(backend.save())
    if script:
        backend.restore(script)
    # Also when nothing of ours was left: the CNI plugins' rules may have been the last in their table.
    backend.drop_empty_tables()


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
