"""What the last pass over all policies found, for those parts of the next that would find the same.

A pass is a function of the whole view, which makes it simple; but a pod that comes changes one namespace's
members and a chain or two, and everything else would be worked out again only to be thrown away. So each part
is remembered under a name together with what it was made of, and made anew when that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

Value = TypeVar("Value")


class Memory:
    """Parts by name. `turn` ends a pass: what the pass did not ask for is forgotten."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[object, object]] = {}
        self._asked: dict[Hashable, tuple[object, object]] = {}

    def part(self, name: Hashable, source: object, make: Callable[[], Value]) -> Value:
        """What `make` makes of `source`; one name stands for one source in a pass."""
        found = self._asked.get(name) or self._known.get(name)
        if found is None or found[0] != source:
            found = (source, make())
        self._asked[name] = found
        return cast(Value, found[1])

    def turn(self) -> None:
        self._known, self._asked = self._asked, {}
