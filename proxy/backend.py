"""What a backend is: one address family's Services in the kernel, however that is done.

Two exist: iptables (`iptables_backend`) and nftables (`nftables`). Both are told of changed Services only,
keep by themselves what they were told, and bring the kernel to it in one transaction per table, so that no
packet ever meets half of the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.changes import Name, Served
from proxy.topology import Place


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sync did: `kind` "full", "partial" or "nothing"; `kernel` are the seconds spent in the kernel or
    in the tool; `repaired` counts what somebody else had changed."""

    kind: str
    kernel: float = 0.0
    repaired: int = 0


class Backend(Protocol):
    """Not for several threads at once."""

    title: str
    """As in the log: "iptables-nft ipv4", "nftables ipv6"."""
    version: int
    look_every: float
    """Seconds between two calls of `look`: as often as its price allows."""

    def apply(self, changed: Mapping[Name, Served], place: Place) -> Outcome:
        """Learn what changed and bring the kernel to all that is known, wholly the first time.

        After a failure (ProxyError) nothing is forgotten: the next call does the rest, and looks at
        everything anew.
        """
        ...

    def look(self) -> str:
        """A reason why everything has to be looked at anew by the next `apply`, empty when there is none."""
        ...

    def rules(self) -> Mapping[str, int]:
        """How many rules (iptables) or map elements (nftables) there are, by table or map."""
        ...

    def clean_up(self) -> None:
        """Remove what this backend ever made in the kernel, and nothing of anyone else's."""
        ...

    def close(self) -> None:
        """Let go of sockets; the rules stay."""
        ...
