"""Watch → view → table: the thread that keeps NetworkPolicies in the kernel.

Pods and namespaces are watched only from the first policy on; without one there is no table, and nothing
costs anything. Changes of a few milliseconds go together. Now and then, when anybody has changed the
kernel's rules, the table is looked at, and written anew in one transaction if it is not ours any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.nfnetlink import NfTables, NftError
from proxy.nfobjects import encode
from proxy.policy import table
from proxy.policy.gate import NO_GATE, Gate
from proxy.policy.memory import Memory
from proxy.policy.rules import NO_SERVER, NameServer, compile_policies
from proxy.policy.world import World

if TYPE_CHECKING:
    from kubeclient.informer import Informer

log = logging.getLogger(__name__)

GATHER = 0.005  # seconds that a change waits for company
LOOK = 30.0
RETRY = 1.0


class Enforcer(threading.Thread):
    """`synced` says whether all policies are known. `more` makes the informers of pods and namespaces, at the
    first policy, and returns them synced.
    """

    def __init__(
        self,
        world: World,
        node: str,
        synced: Callable[[], bool],
        more: Callable[[], list[Informer] | None],
        *,
        server: NameServer = NO_SERVER,
        gate: Gate = NO_GATE,
        open_tables: Callable[[], NfTables] = NfTables,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="policies", daemon=True)
        self._world = world
        self._node = node
        self._synced = synced
        self._more = more
        self._server = server
        self._gate = gate
        self._open = open_tables
        self._clock = clock
        self._informers: list[Informer] = []
        self._layout: table.Layout | None = None  # what the kernel holds; None: unknown
        self._generation = 0
        self._looked = clock()
        self._memory = Memory()
        self._stopping = threading.Event()

    def run(self) -> None:
        self._world.changed.set()
        while not self._stopping.is_set():
            self._world.changed.wait(LOOK)
            if self._stopping.wait(GATHER):
                break
            self._world.changed.clear()
            try:
                said = self.sync()
                if said:
                    log.info(said)
            except NftError as error:
                self._layout = None
                log.error("Failed to enforce network policies err=%s retry_s=%.0f", error, RETRY)
                self._stopping.wait(RETRY)
                self._world.changed.set()
            except Exception:
                # A defect that one object meets must not end the thread, and with it all policies to come.
                self._layout, self._memory = None, Memory()
                log.exception("Failed to work out network policies retry=next-change-or-%.0f-s", LOOK)
                self._stopping.wait(RETRY)  # not at each of a busy cluster's changes

    def stop(self) -> None:
        """End; the table stays, so that policies hold while we are restarted."""
        self._stopping.set()
        self._world.changed.set()
        for informer in self._informers:
            informer.stop()

    def sync(self) -> str:
        """Bring the kernel to the present view; says what was done, or nothing. Raises NftError."""
        if not self._synced():
            # What another life of ours has left in the kernel holds until we know better.
            self._world.changed.set()
            self._stopping.wait(0.1)
            return ""
        if self._world.any_policy and not self._informers:
            found = self._more()
            if found is None:
                return ""
            self._informers = found
        started = self._clock()
        view = self._world.view()
        with self._open() as kernel:
            if not view.policies:
                said = self._remove(kernel)
                self._stop_watching()
                return said
            wanted = compile_policies(view, self._node, self._server, self._memory)
            new = table.layout(wanted, self._memory)
            self._memory.turn()
            if self._layout is not None and self._due() and self._broken(kernel, self._layout):
                log.warning("Found network policies changed by somebody else action=write-anew")
                self._layout = None
            whole = self._layout is None
            messages = table.replace(new) if self._layout is None else table.change(self._layout, new)
            if messages:
                kernel.commit(messages)
                self._generation = kernel.generation()
            self._layout = new
            self._keep(lambda: self._gate.remember(view.ranges))
        if not messages:
            return ""
        spent = (self._clock() - started) * 1000
        kind = "full" if whole else "partial"
        counts = f"policies={len(view.policies)} messages={len(messages)}"
        return f"Enforced policies kind={kind} {counts} ms={spent:.0f}"

    def _stop_watching(self) -> None:
        """A node may see the pods of others only as long as there is a policy."""
        if self._informers:
            for informer in self._informers:
                informer.stop()
            self._informers = []
            self._world.forget_pods()

    @staticmethod
    def _keep(act: Callable[[], None]) -> None:
        """What the disk does not take is said, and policies are enforced all the same."""
        try:
            act()
        except OSError as error:
            log.error("Failed to remember for the next boot whether there are policies err=%s", error)

    def _remove(self, kernel: NfTables) -> str:
        self._layout = None
        self._keep(self._gate.forget)
        if not self._there(kernel):
            return ""
        kernel.commit(table.remove())
        return "Removed network policies reason=there is none"

    @staticmethod
    def _there(kernel: NfTables) -> bool:
        """Whether the table exists; a kernel without nftables has none, and needs none without a policy."""
        try:
            return table.TABLE in kernel.tables()
        except NftError as error:
            log.debug("Could not list tables err=%s", error)
            return False

    def _due(self) -> bool:
        """A look reads the whole table, and the proxy's own changes of Services are somebody's, too: so not
        with each change of a pod.
        """
        now = self._clock()
        due = now - self._looked >= LOOK
        if due:
            self._looked = now
        return due

    def _broken(self, kernel: NfTables, ours: table.Layout) -> bool:
        """Whether the kernel's table differs from what we wrote. Rules are compared by number and chain."""
        generation = kernel.generation()
        if generation == self._generation:
            return False
        self._generation = generation
        counts = {name: len(rules) for name, (_, rules) in ours.chains.items()}
        found = dict.fromkeys(kernel.chains(table.TABLE), 0)
        for rule in kernel.rules(table.TABLE):
            found[rule.chain] = found.get(rule.chain, 0) + 1
        if counts != found or set(kernel.sets(table.TABLE)) != set(ours.sets):
            return True
        return not all(
            kernel.holds(table.TABLE, name, {encode(element) for element in elements})
            for name, (_, elements) in ours.sets.items()
        )


def clean_up(kernel: NfTables) -> bool:
    """Remove the table; whether there was one."""
    if table.TABLE not in kernel.tables():
        return False
    kernel.commit(table.remove())
    return True
