"""What keeps a namespace that is being deleted: its status conditions. Pure.

They are where people look when a namespace stays Terminating: what is left in it, and which finalizers hold
that. Types, reasons and sentences are upstream's (pkg/controller/namespace/deletion).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

_QUIET = (
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
)


@dataclass(frozen=True, slots=True)
class Left:
    """One object that is still there: its kind as `plural.group`, and what holds it."""

    kind: str
    finalizers: tuple[str, ...] = ()


def conditions(present: Sequence[Object], left: Sequence[Left], now: str) -> list[Object]:
    """The conditions for what is left; those of `present` that say the same already keep their time."""
    kinds = Counter(one.kind for one in left)
    held = Counter(name for one in left for name in one.finalizers)
    wanted = [(kind, "False", reason, text) for kind, reason, text in _QUIET]
    if kinds:
        listed = [f"{kind} has {number} resource instances" for kind, number in sorted(kinds.items())]
        text = f"Some resources are remaining: {', '.join(listed)}"
        wanted.append(("NamespaceContentRemaining", "True", "SomeResourcesRemain", text))
    else:
        text = "All content successfully removed"
        wanted.append(("NamespaceContentRemaining", "False", "ContentRemoved", text))
    if held:
        listed = [f"{name} in {number} resource instances" for name, number in sorted(held.items())]
        text = f"Some content in the namespace has finalizers remaining: {', '.join(listed)}"
        wanted.append(("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", text))
    else:
        text = "All content-preserving finalizers finished"
        wanted.append(("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", text))
    before = {condition["type"]: condition for condition in present}
    ours = [_condition(before.get(parts[0]), *parts, now) for parts in wanted]
    others = [condition for kind, condition in before.items() if kind not in {one["type"] for one in ours}]
    return [*others, *ours]


def _condition(before: Object | None, kind: str, status: str, reason: str, text: str, now: str) -> Object:
    time = now
    if before is not None and before.get("status") == status:
        time = before.get("lastTransitionTime", now)
    return {"type": kind, "status": status, "lastTransitionTime": time, "reason": reason, "message": text}
