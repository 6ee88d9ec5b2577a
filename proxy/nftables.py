"""Services by nftables, maps only: a change of one endpoint is a handful of elements in one netlink message.

The backend keeps what should be in every map, and sends differences. What others do to the table is noticed
by the generation number, which any change of any table raises; only then is the table read back and
compared, and what differs is mended in one transaction: the fixed rules are written anew in it, elements are
added and removed, so no packet finds a rule missing. The memory of session affinity is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from proxy.backend import Outcome
from proxy.changes import Name, Served
from proxy.config import ProxyConfig
from proxy.nfnetlink import Conflict, NfTables, NftError
from proxy.nfobjects import (
    Chain,
    Element,
    Message,
    add_chain,
    add_elements,
    add_set,
    add_table,
    delete_chain,
    delete_elements,
    delete_set,
    delete_table,
    flush_chain,
)
from proxy.nftclaims import Claims
from proxy.nftelements import Remembered, Slots, Wanted, elements, slots
from proxy.nftframe import FIXED_CHAINS, Frame, Target
from proxy.topology import NOWHERE, Place, reachable

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
SHARE_FOR_LOOKING = 0.05
ATTEMPTS = 3


class NftablesBackend:
    """One of the tables `ip kubelet-py-proxy` and `ip6 kubelet-py-proxy`, and what it was last told."""

    look_every = LOOK_EVERY

    def __init__(
        self,
        config: ProxyConfig,
        kernel: NfTables,
        version: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._kernel = kernel
        self._clock = clock
        self.version = version
        self.title = f"nftables ipv{version}"
        self._frame = Frame(config, version)
        self._table = self._frame.table
        self._claims = Claims()
        self._slots: dict[Name, dict[tuple[str, str], Slots]] = {}
        self._targets: dict[Name, frozenset[Target]] = {}
        self._wanted_targets: Counter[Target] = Counter()
        self._there: set[Target] = set()
        self._affine: dict[Name, frozenset[Remembered]] = {}
        self._gone: set[Remembered] = set()
        self._known = False
        self._generation = 0
        self._next_look = 0.0

    # --- Backend -----------------------------------------------------------------------------------

    def apply(self, changed: Mapping[Name, Served], place: Place = NOWHERE) -> Outcome:
        self._learn(changed, place)
        outcome = self._write()
        self._forget()
        return outcome

    def _write(self) -> Outcome:
        if self._known:
            try:
                return self._partial()
            except NftError as error:
                # Most likely somebody took away what we relied on.
                log.warning("Failed to change elements table=%s err=%s action=full-sync", self.title, error)
                self._known = False
        return self._full()

    def look(self) -> str:
        if not self._known:
            return ""
        now = self._clock()
        if now < self._next_look:
            return ""
        generation = self._kernel.generation()
        if generation == self._generation:
            return ""
        began = time.perf_counter()
        broken = self._broken()
        self._next_look = now + (time.perf_counter() - began) / SHARE_FOR_LOOKING
        if broken:
            self._known = False
            return broken
        # Others changed tables of their own.
        self._generation = generation
        return ""

    def rules(self) -> Mapping[str, int]:
        return {name: len(held) for name, held in self._claims.held.items()}

    def clean_up(self) -> None:
        self._known = False
        if self._table in self._kernel.tables():
            self._kernel.commit([add_table(self._table), delete_table(self._table)])

    def close(self) -> None:
        self._kernel.close()

    # --- what should be ----------------------------------------------------------------------------

    def _learn(self, changed: Mapping[Name, Served], place: Place) -> None:
        members = []
        for name, served in changed.items():
            wanted = Wanted()
            before = self._slots.get(name, {})
            after: dict[tuple[str, str], Slots] = {}
            for port, endpoints in served:
                found = reachable(port, endpoints, place)
                where = (port.port_name, port.protocol)
                after[where] = slots(before.get(where, Slots()), found)
                elements(wanted, port, found, after[where], self._config)
            if after:
                self._slots[name] = after
            else:
                self._slots.pop(name, None)
            self._count(name, frozenset(wanted.targets))
            self._note_affine(name, frozenset(wanted.affine))
            members.append((name, wanted.members))
        self._claims.change(members)

    def _count(self, name: Name, targets: frozenset[Target]) -> None:
        before = self._targets.pop(name, frozenset())
        self._wanted_targets.update(targets - before)
        self._wanted_targets.subtract(before - targets)
        if targets:
            self._targets[name] = targets

    def _note_affine(self, name: Name, affine: frozenset[Remembered]) -> None:
        before = self._affine.pop(name, frozenset())
        self._gone |= before - affine
        if affine:
            self._affine[name] = affine

    # --- into the kernel ---------------------------------------------------------------------------

    def _partial(self) -> Outcome:
        removed: dict[str, list[bytes]] = defaultdict(list)
        added: dict[str, list[bytes]] = defaultdict(list)
        for name, before, after in self._claims.differences():
            if before is not None:
                removed[name].append(before)
            if after is not None:
                added[name].append(after)
        if not removed and not added:
            self._claims.settled()
            return Outcome("nothing")
        fresh = {target for target, n in self._wanted_targets.items() if n > 0} - self._there
        messages = self._chains(fresh)
        for name, raw in removed.items():
            messages += delete_elements(self._table, name, raw)
        for name, raw in added.items():
            messages += add_elements(self._table, name, raw)
        began = time.perf_counter()
        self._own_commit(messages)
        spent = time.perf_counter() - began
        self._there |= fresh
        self._claims.settled()
        return Outcome("partial", spent)

    def _chains(self, targets: set[Target]) -> list[Message]:
        """Balancing chains, written anew where they exist; all chains first, as they lead to each other."""
        ordered = sorted(targets)
        memories = {made.name: made for t in ordered if (made := self._frame.memory(t)) is not None}
        messages = [add_set(self._table, made) for made in memories.values()]
        messages += [add_chain(self._table, Chain(target.chain)) for target in ordered]
        for target in ordered:
            messages.append(flush_chain(self._table, target.chain))
            messages += self._frame.target_rules(target)
        return messages

    def _full(self) -> Outcome:
        for _ in range(ATTEMPTS):
            generation = self._kernel.generation()
            messages, repaired = self._everything()
            began = time.perf_counter()
            try:
                self._kernel.commit(messages, generation)
            except Conflict:
                continue
            except NftError as error:
                if error.errno != errno.EEXIST or not error.action.startswith("add set"):
                    raise
                # A table of another version of ours: its sets cannot be changed, only replaced.
                log.warning("Found a table of another layout table=%s action=replace", self._table)
                messages = [add_table(self._table), delete_table(self._table), *self._from_nothing()]
                self._kernel.commit(messages)
            spent = time.perf_counter() - began
            self._known = True
            self._generation = generation + 1
            self._there = self._present_targets()
            self._claims.settled()
            return Outcome("full", spent, repaired)
        raise NftError(f"write table {self._table}", errno.EAGAIN, "others change rules all the time")

    def _present_targets(self) -> set[Target]:
        return {target for target, n in self._wanted_targets.items() if n > 0}

    def _from_nothing(self) -> list[Message]:
        messages = self._frame.base()
        messages += self._chains(self._present_targets())
        messages += self._frame.fixed_rules()
        for name, held in self._claims.held.items():
            messages += add_elements(self._table, name, held.values())
        return messages

    def _everything(self) -> tuple[list[Message], int]:
        """What brings the table, whatever it holds, to what should be; and how much of it was wrong."""
        sets = set(self._kernel.sets(self._table))
        if not sets:
            return self._from_nothing(), 0
        messages = self._frame.base()
        targets = self._present_targets()
        messages += self._chains(targets)
        messages += self._frame.fixed_rules()
        repaired = 0
        for made in self._frame.sets():
            there = set(self._kernel.encoded_elements(self._table, made.name)) if made.name in sets else set()
            wanted = set(self._claims.held[made.name].values())
            messages += delete_elements(self._table, made.name, there - wanted)
            messages += add_elements(self._table, made.name, wanted - there)
            repaired += len(there ^ wanted)
        ours = FIXED_CHAINS | {target.chain for target in targets}
        stale = [chain for chain in self._kernel.chains(self._table) if chain not in ours]
        messages += [flush_chain(self._table, chain) for chain in stale]
        messages += [delete_chain(self._table, chain) for chain in stale]
        memories = {one.name for target in targets if (one := self._frame.memory(target)) is not None}
        foreign = sets - {made.name for made in self._frame.sets()} - memories
        messages += [delete_set(self._table, name) for name in sorted(foreign)]
        return messages, repaired

    def _forget(self) -> None:
        """Delete what packets had remembered of endpoints that are gone.

        After the change, as until then packets may remember them still.
        """
        gone, self._gone = self._gone, set()
        for name in sorted({name for name, _key, _data in gone}):
            keys = {key for where, key, _data in gone if where == name}
            stale = [
                Element(element.key)
                for element in self._kernel.elements(self._table, name)
                if element.key[self._frame.words * 4 :] in keys
            ]
            for message in delete_elements(self._table, name, stale):
                self._delete(message, name, stale)

    def _delete(self, message: Message, name: str, stale: list[Element]) -> None:
        try:
            self._own_commit([message])
        except NftError as error:
            if error.errno != errno.ENOENT:
                raise
            # One ran out meanwhile: each by itself.
            for element in stale:
                with contextlib.suppress(NftError):
                    self._own_commit(delete_elements(self._table, name, [element]))

    def _own_commit(self, messages: list[Message]) -> None:
        """A transaction that the generation number does not make us look at."""
        generation = self._kernel.generation()
        self._kernel.commit(messages)
        if generation == self._generation:
            self._generation += 1

    def _broken(self) -> str:
        """What of the table is not as it should be: one reason, empty when all is well."""
        expected: Counter[str] = Counter()
        for message in self._frame.fixed_rules():
            expected[message.action] += message.action.startswith("add rule")
        for target in self._there:
            for message in self._frame.target_rules(target):
                expected[message.action] += 1
        found = Counter(f"add rule to {self._table} {rule.chain}" for rule in self._kernel.rules(self._table))
        if +expected != found:
            return "somebody changed rules of ours"
        sets = set(self._kernel.sets(self._table))
        for made in self._frame.sets():
            if made.name not in sets:
                return f"somebody removed map {made.name}"
            if not self._kernel.holds(self._table, made.name, set(self._claims.held[made.name].values())):
                return f"somebody changed elements of {made.name}"
        return ""
