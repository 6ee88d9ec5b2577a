"""Who is asking: the outcome of authentication, which authorization and admission judge by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
MASTERS = "system:masters"


@dataclass(frozen=True, slots=True)
class User:
    """A name, the groups it is in, and for service accounts the uid and what the token is bound to."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def node_name(self) -> str:
        """The node whose kubelet this is, or ""."""
        if "system:nodes" in self.groups and self.name.startswith("system:node:"):
            return self.name.removeprefix("system:node:")
        return ""


ANONYMOUS = User("system:anonymous", (UNAUTHENTICATED,))
SERVER = User("system:apiserver", (MASTERS, AUTHENTICATED))
