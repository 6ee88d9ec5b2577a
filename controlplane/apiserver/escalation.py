"""Nobody grants by RBAC what they do not have.

Whoever may write Roles or bind them in a namespace (the ClusterRole "admin" lets tenants do both) could give
themselves everything there. So the rules of what is written or bound are compared with the writer's own,
unless the writer has the verb `escalate` on the role, or `bind` for a binding (upstream: pkg/registry/rbac).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Protocol

from controlplane.apiserver.authorization import Attributes, Rule
from controlplane.apiserver.errors import forbidden, not_found
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.users import MASTERS, User

Object = dict[str, Any]

GROUP = "rbac.authorization.k8s.io"
_ROLES = ("roles", "clusterroles")
_EVERYTHING = (Rule(("*",), ("*",), ("*",)), Rule(("*",), paths=("*",)))
_GC_FIELDS = ("finalizers", "ownerReferences", "managedFields", "resourceVersion")


class Rights(Protocol):
    """What is asked of the authorizer."""

    def allowed(self, user: User, asked: Attributes) -> bool: ...
    def rules(self, user: User, namespace: str) -> Iterator[Rule]: ...
    def rules_of_role(self, reference: Object, namespace: str) -> list[Rule] | None: ...


def check(
    rights: Rights, info: ResourceInfo, namespace: str, new: Object, user: User, old: Object | None = None
) -> None:
    """Raises StatusError: 403 for a grant of more than the user has, 404 for a binding to no role."""
    if info.group != GROUP or MASTERS in user.groups or (old is not None and _for_gc_only(new, old)):
        return
    name = new["metadata"].get("name", "")
    own = tuple(rights.rules(user, namespace))
    if info.plural in _ROLES:
        if rights.allowed(user, Attributes("escalate", GROUP, info.plural, namespace=namespace, name=name)):
            return
        _confirm(info, name, user, own, [_rule(given) for given in new.get("rules") or ()])
        if new.get("aggregationRule") and _missing(own, _EVERYTHING):
            raise forbidden(info, name, "must have cluster-admin privileges to use the aggregationRule")
        return
    reference = new.get("roleRef") or {}
    plural = "clusterroles" if reference.get("kind") == "ClusterRole" else "roles"
    bound = reference.get("name", "")
    if rights.allowed(user, Attributes("bind", GROUP, plural, namespace=namespace, name=bound)):
        return
    granted = rights.rules_of_role(reference, namespace)
    if granted is None:
        role = lookup(GROUP, "v1", plural)
        assert role is not None
        raise not_found(role, bound)
    _confirm(info, name, user, own, granted)


def uncovered(held: Sequence[Object], wanted: Sequence[Object]) -> list[Object]:
    """The rules of `wanted` that grant something that `held` does not."""
    own = [_rule(given) for given in held]
    return [given for given in wanted if given not in held and _missing(own, [_rule(given)])]


def _for_gc_only(new: Object, old: Object) -> bool:
    """Does the write change nothing but what the garbage collector needs to delete the object?"""

    def rest(obj: Object) -> Object:
        metadata = {key: value for key, value in obj["metadata"].items() if key not in _GC_FIELDS}
        return {**obj, "metadata": metadata}

    return rest(new) == rest(old)


def _rule(given: Object) -> Rule:
    fields: Callable[[str], tuple[str, ...]] = lambda name: tuple(given.get(name) or ())  # noqa: E731
    return Rule(*map(fields, ("verbs", "apiGroups", "resources", "resourceNames", "nonResourceURLs")))


def _confirm(info: ResourceInfo, name: str, user: User, own: Sequence[Rule], wanted: Sequence[Rule]) -> None:
    missing = _missing(own, wanted)
    if not missing:
        return
    text = f'user "{user.name}" (groups={_list(user.groups)}) is attempting to grant RBAC permissions not'
    listed = sorted(map(_shown, _compact(missing)))
    raise forbidden(info, name, text + " currently held:\n" + "\n".join(listed))


def _missing(own: Sequence[Rule], wanted: Sequence[Rule]) -> list[Rule]:
    return [part for rule in wanted for part in _parts(rule) if not any(_covers(has, part) for has in own)]


def _parts(rule: Rule) -> Iterator[Rule]:
    """The rule as rules of one verb on one resource (by one name) or one path."""
    for group, resource, verb in product(rule.groups, rule.resources, rule.verbs):
        things = Rule((verb,), (group,), (resource,))
        yield from [replace(things, names=(name,)) for name in rule.names] or [things]
    for path, verb in product(rule.paths, rule.verbs):
        yield Rule((verb,), paths=(path,))


def _covers(has: Rule, part: Rule) -> bool:
    if not ("*" in has.verbs or part.verbs[0] in has.verbs):
        return False
    if part.paths:
        path = part.paths[0]
        return any(
            pattern == path or (pattern.endswith("*") and path.startswith(pattern[:-1]))
            for pattern in has.paths
        )
    resource, _, subresource = part.resources[0].partition("/")
    resources = {"*", part.resources[0], f"*/{subresource}" if subresource else resource}
    if not resources & set(has.resources) or not {"*", part.groups[0]} & set(has.groups):
        return False
    return not has.names or (bool(part.names) and part.names[0] in has.names)


def _compact(parts: Sequence[Rule]) -> list[Rule]:
    """Verbs on the same thing together."""
    together: dict[Rule, list[str]] = {}
    for part in parts:
        together.setdefault(replace(part, verbs=()), []).extend(part.verbs)
    return [replace(thing, verbs=tuple(dict.fromkeys(verbs))) for thing, verbs in together.items()]


def _shown(rule: Rule) -> str:
    named = (
        ("APIGroups", rule.groups),
        ("Resources", rule.resources),
        ("NonResourceURLs", rule.paths),
        ("ResourceNames", rule.names),
        ("Verbs", rule.verbs),
    )
    return "{" + ", ".join(f"{name}:{_list(values)}" for name, values in named if values) + "}"


def _list(values: Sequence[str]) -> str:
    """As Go's %q prints a slice of strings."""
    return "[" + " ".join(f'"{value}"' for value in values) + "]"
