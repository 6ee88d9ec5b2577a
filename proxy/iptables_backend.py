"""Services by iptables: each change rewrites the chains of its own Service, and shared chains only when a
rule in them changes.

Where the time goes: `iptables-restore` of the nft variant reads what it touches back from the kernel and
compares rule by rule, which collapses between 1,000 and 5,000 Services (0.3 s → 8 s for everything, 42 s for
10,000: see the project's baseline). So more than `COMFORTABLE` Services are worth a warning there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from proxy.backend import Outcome
from proxy.changes import Name, Served
from proxy.config import ProxyConfig
from proxy.errors import IptablesError
from proxy.iptables import Iptables, Saved, cleanup_script, full_script, partial_script
from proxy.rules import CANARY, SHARED, Piece, Ruleset, frame, joined, piece
from proxy.topology import NOWHERE, Place, reachable

log = logging.getLogger(__name__)

COMFORTABLE = 2000
"""Service ports that the nft variant of iptables carries; 5,000 take 8 s to load and 10,000 42 s."""


class IptablesBackend:
    """One of `iptables` and `ip6tables`, and what it was last told."""

    def __init__(self, config: ProxyConfig, tool: Iptables, sync_period: float | None = None) -> None:
        self._config = config
        self._tool = tool
        self.version = tool.version
        self.title = f"iptables-{tool.variant} ipv{tool.version}"
        self.look_every = config.sync_period if sync_period is None else sync_period
        self._pieces: dict[Name, tuple[Piece, ...]] = {}
        self._wanted = {table: dict(chains) for table, chains in frame(config, self.version).items()}
        self._known: dict[str, dict[str, tuple[str, ...]]] | None = None
        self._touched: dict[str, set[str]] = {table: set(chains) for table, chains in self._wanted.items()}
        self._join(SHARED)
        self._warned = False

    def apply(self, changed: Mapping[Name, Served], place: Place = NOWHERE) -> Outcome:
        self._learn(changed, place)
        kind = "full" if self._known is None else "partial"
        script = self._full() if self._known is None else self._partial(self._known)
        if not script:
            return Outcome("nothing")
        began = time.perf_counter()
        try:
            self._tool.restore(script)
        except IptablesError:
            self._known = None
            raise
        spent = time.perf_counter() - began
        self._remember()
        self._warn()
        return Outcome(kind, spent)

    def look(self) -> str:
        if self._known is not None and not self._tool.has_chains(CANARY):
            self._known = None
            return "somebody flushed the tables"
        return ""

    def rules(self) -> Mapping[str, int]:
        return {table: sum(map(len, chains.values())) for table, chains in self._wanted.items()}

    def clean_up(self) -> None:
        clean_up(self._tool)
        self._known = None

    def close(self) -> None:
        """There is nothing between two runs of the tools."""

    def _learn(self, changed: Mapping[Name, Served], place: Place) -> None:
        shared: set[tuple[str, str]] = set()
        nat = self._wanted["nat"]
        for name, served in changed.items():
            before = self._pieces.get(name, ())
            after = tuple(
                piece(port, reachable(port, endpoints, place), self._config, self.version)
                for port, endpoints in served
            )
            if after:
                self._pieces[name] = after
            else:
                self._pieces.pop(name, None)
            own = {chain: rules for made in after for chain, rules in made.own.items()}
            for chain in {chain for made in before for chain in made.own} - set(own):
                nat.pop(chain, None)
                self._touched["nat"].add(chain)
            nat.update(own)
            self._touched["nat"].update(own)
            shared |= {where for where in SHARED if _share(before, where) != _share(after, where)}
        self._join(shared)

    def _join(self, shared: Iterable[tuple[str, str]]) -> None:
        """The shared chains anew; sorted, so that a restart finds the same rules."""
        places = list(shared)
        if not places:
            return
        pieces = [made for name in sorted(self._pieces) for made in self._pieces[name]]
        for table, chain in places:
            self._wanted[table][chain] = joined(table, chain, pieces, self._config, self.version)
            self._touched[table].add(chain)

    def _full(self) -> str:
        saved: Saved = self._tool.save()
        return full_script(self._wanted, saved)

    def _partial(self, known: Ruleset) -> str:
        """The touched chains that differ; all others are as they were."""
        before = {t: {c: known[t][c] for c in names if c in known[t]} for t, names in self._touched.items()}
        after = {
            t: {c: self._wanted[t][c] for c in names if c in self._wanted[t]}
            for t, names in self._touched.items()
        }
        return partial_script(before, after)

    def _remember(self) -> None:
        if self._known is None:
            self._known = {table: dict(chains) for table, chains in self._wanted.items()}
        for table, names in self._touched.items():
            for chain in names:
                if chain in self._wanted[table]:
                    self._known[table][chain] = self._wanted[table][chain]
                else:
                    self._known[table].pop(chain, None)
            names.clear()

    def _warn(self) -> None:
        count = sum(map(len, self._pieces.values()))
        if self._tool.variant == "nft" and count > COMFORTABLE and not self._warned:
            self._warned = True
            log.warning(
                "Found more Services than the nft variant of iptables carries ports=%d comfortable=%d "
                "load_s_at_5000=8 load_s_at_10000=42 fix='--proxy-mode nftables'",
                count,
                COMFORTABLE,
            )


def _share(pieces: tuple[Piece, ...], where: tuple[str, str]) -> list[str]:
    return [rule for made in pieces for rule in made.shared.get(where, ())]


def clean_up(tool: Iptables) -> None:
    """Remove our chains and the jumps to them, and tables that are empty then; nothing of anyone else's."""
    script = cleanup_script(tool.save())
    if script:
        tool.restore(script)
    # Also when nothing of ours was left: the CNI plugins' rules may have been the last in their table.
    tool.drop_empty_tables()
