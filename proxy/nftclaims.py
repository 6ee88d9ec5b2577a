"""Who wants which element of which set, and what of it the kernel does not know yet. PURE.

Two Services may want the same key: an address moved from one to the other, two claim one external IP, one pod
stands behind both. The first has it; when it lets go the next takes over, instead of leaving the key to
nobody. What is the same in both is one element.
"""

from __future__ import annotations

import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from proxy.changes import Name
from proxy.nftelements import Member

_KEY_END = struct.pack("=H", 10)


def key_of(raw: bytes) -> bytes:
    """The part of an encoded element that no other in its set may have."""
    length = int.from_bytes(raw[4:6], sys.byteorder)
    end = 4 + length
    # A range's end is part of its key (NFTA_SET_ELEM_KEY_END); keys are whole words, so nothing is padded.
    if raw[end + 2 : end + 4] == _KEY_END:
        return raw
    return raw[4:end]


class Claims:
    """`held` is what should be in each set, by key."""

    def __init__(self) -> None:
        self.held: dict[str, dict[bytes, bytes]] = defaultdict(dict)
        self._by_name: dict[Name, tuple[Member, ...]] = {}
        self._waiting: dict[tuple[str, bytes], list[tuple[Name, bytes]]] = {}
        self._before: dict[tuple[str, bytes], bytes | None] = {}
        """What the kernel has of keys that changed since `settled`."""

    def change(self, wanted: Iterable[tuple[Name, Iterable[Member]]]) -> None:
        """Services want these members now, instead of what they wanted before."""
        additions: list[tuple[Name, Member]] = []
        for name, members in wanted:
            new = dict.fromkeys(members)
            old = self._by_name.get(name, ())
            known = set(old)
            for member in old:
                if member not in new:
                    self._release(name, member)
            additions += [(name, member) for member in new if member not in known]
            if new:
                self._by_name[name] = tuple(new)
            else:
                self._by_name.pop(name, None)
        for name, member in additions:
            self._claim(name, member)

    def _claim(self, name: Name, member: Member) -> None:
        where, raw = member
        held, key = self.held[where], key_of(raw)
        if key in held:
            self._waiting.setdefault((where, key), []).append((name, raw))
            return
        self._note(where, key)
        held[key] = raw

    def _release(self, name: Name, member: Member) -> None:
        where, raw = member
        held, key = self.held[where], key_of(raw)
        waiting = self._waiting.get((where, key), [])
        if (name, raw) in waiting:
            waiting.remove((name, raw))
        elif waiting:
            self._note(where, key)
            held[key] = waiting.pop(0)[1]
        else:
            self._note(where, key)
            held.pop(key, None)
        if not waiting:
            self._waiting.pop((where, key), None)

    def _note(self, where: str, key: bytes) -> None:
        if (where, key) not in self._before:
            self._before[where, key] = self.held[where].get(key)

    def differences(self) -> Iterator[tuple[str, bytes | None, bytes | None]]:
        """(set, what the kernel has, what it should have) of each key where the two differ."""
        for (where, key), before in self._before.items():
            after = self.held[where].get(key)
            if after != before:
                yield where, before, after

    def settled(self) -> None:
        """The kernel has all of it."""
        self._before.clear()
