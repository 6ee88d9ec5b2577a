"""What a plugin is, for those who run one.

Apart from `skeleton`, since a plugin program has no use for protocols, and `typing` costs it 18 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from cni.types import Request, Result


class Plugin(Protocol):
    """What a plugin does for each command; every method raises CniError subclasses."""

    def add(self, request: Request) -> Result: ...
    def delete(self, request: Request) -> None: ...
    def check(self, request: Request) -> None: ...
    def gc(self, request: Request) -> None: ...
    def status(self, request: Request) -> None: ...


@runtime_checkable
class NetworkWide(Protocol):
    """A plugin of ours that keeps something for a network as a whole, beside what each pod has."""

    def prepare(self, config: Mapping[str, Any]) -> None: ...
    def tear_down(self, config: Mapping[str, Any]) -> None: ...
