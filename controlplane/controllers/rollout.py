"""How a Deployment's replicas are spread over its ReplicaSets. Pure.

Percentages round up for maxSurge and down for maxUnavailable; both zero would stand still, so then one pod
may be missing. Source: upstream's deployment util and rolling.go.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

Object = dict[str, Any]

# No vowels and no digits that look like letters, so that no hash spells a word (upstream's safe alphabet).
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
HASH_LABEL = "pod-template-hash"


@dataclass(frozen=True, slots=True)
class SetView:
    """One ReplicaSet as the rollout sees it; `wanted` is its spec.replicas.

    `maximum` is what the whole Deployment was allowed when this set was last sized (0: not known).
    """

    name: str
    wanted: int
    ready: int
    available: int
    replicas: int
    created: str = ""
    maximum: int = 0


def template_hash(template: Object, collisions: int = 0) -> str:
    """Ten safe letters that tell templates apart; `collisions` makes a different one of the same template."""
    body = orjson.dumps(template, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(body + (str(collisions).encode() if collisions else b"")).digest()
    return "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest[:10])


def same_template(one: Object, other: Object) -> bool:
    """Whether two pod templates are equal besides the hash label."""
    return _without_hash(one) == _without_hash(other)


def _without_hash(template: Object) -> Object:
    plain = copy.deepcopy(template)
    labels = (plain.get("metadata") or {}).get("labels") or {}
    labels.pop(HASH_LABEL, None)
    return plain


def bounds(spec: Mapping[str, Any]) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods."""
    replicas = int(spec.get("replicas", 1))
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = scaled(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = scaled(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, replicas)


def scaled(value: int | str, total: int, *, up: bool) -> int:
    """A number of pods, or "25%" of `total` rounded up or down."""
    if isinstance(value, str) and value.endswith("%"):
        percent = int(value[:-1]) * total
        return -(-percent // 100) if up else percent // 100
    return int(value)


def rolling_update(spec: Mapping[str, Any], new: SetView, old: Sequence[SetView]) -> dict[str, int]:
    """ReplicaSet name → replicas it should have now, for those that should change; one step of a rollout."""
    replicas = int(spec.get("replicas", 1))
    surge, unavailable = bounds(spec)
    total = new.wanted + sum(view.wanted for view in old)
    if new.wanted > replicas:
        return {new.name: replicas}
    if new.wanted < replicas:
        room = replicas + surge - total
        if room > 0:
            return {new.name: min(replicas, new.wanted + room)}
    return _scale_down_old(replicas, unavailable, new, old, total)


def _scale_down_old(
    replicas: int, unavailable: int, new: SetView, old: Sequence[SetView], total: int
) -> dict[str, int]:
    """Take unhealthy old pods first, then as many available ones as may be missing, oldest set first."""
    new_missing = new.wanted - new.available
    spare = total - (replicas - unavailable) - new_missing
    if spare <= 0:
        return {}
    changes: dict[str, int] = {}
    ordered = sorted(old, key=lambda view: view.created)
    for view in ordered:
        sick = min(spare, view.wanted - view.available)
        if sick > 0:
            changes[view.name] = view.wanted - sick
            spare -= sick
    left = {view.name: changes.get(view.name, view.wanted) for view in ordered}
    available = new.available + sum(min(view.available, left[view.name]) for view in ordered)
    spare = available - (replicas - unavailable)
    for view in ordered:
        step = min(max(0, spare), left[view.name])
        if step > 0:
            changes[view.name] = left[view.name] = left[view.name] - step
            spare -= step
    return changes


def recreate(spec: Mapping[str, Any], new: SetView, old: Sequence[SetView], old_pods: int) -> dict[str, int]:
    """All old pods go first; the new ones come when the last old one is gone."""
    down = {view.name: 0 for view in old if view.wanted}
    if down or old_pods:
        return down
    replicas = int(spec.get("replicas", 1))
    return {} if new.wanted == replicas else {new.name: replicas}


def proportional(replicas: int, surge: int, sets: Sequence[SetView]) -> dict[str, int]:
    """Scaling in the middle of a rollout: each set grows or shrinks by its share of the whole.

    The share is taken of `maximum`, so that a set that was sized already keeps its size when the same step
    is made again because another set could not be written (upstream's getReplicaSetFraction).
    """
    active = [view for view in sets if view.wanted]
    total = sum(view.wanted for view in active)
    allowed = replicas + surge if len(active) > 1 else replicas
    difference = allowed - total
    if not active or not difference:
        return {}
    sizes = {view.name: view.wanted for view in active}
    left = difference
    # The largest first; of equals the newer one when there is more to give, the older one when there is less.
    ordered = sorted(active, key=lambda view: view.created, reverse=difference > 0)
    ordered.sort(key=lambda view: -view.wanted)
    for view in ordered:
        share = _rounded(view.wanted * (replicas + surge), view.maximum or total) - view.wanted
        share = max(0, min(share, left)) if difference > 0 else min(0, max(share, left))
        sizes[view.name] += share
        left -= share
    first = ordered[0].name
    sizes[first] = max(0, sizes[first] + left)
    return {view.name: sizes[view.name] for view in active if sizes[view.name] != view.wanted}


def _rounded(dividend: int, divisor: int) -> int:
    """The quotient of two positive numbers, halves upwards as upstream; round() would go to the even one."""
    return (2 * dividend + divisor) // (2 * divisor)
