"""What a ClusterRole with an aggregationRule grants: the rules of all roles that its selectors find.

So a chart adds to admin, edit and view by the label of a role of its own. The rules are written out in the
role (by controllers/cluster_roles, and by the server for its first ones), and whoever judges a request reads
nothing else. Source: upstream's pkg/controller/clusterroleaggregation.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kubeclient.selectors import LabelSelector

Object = dict[str, Any]


def aggregates(role: Object) -> bool:
    """Are this role's rules put together from those of others?"""
    return role.get("aggregationRule") is not None


def aggregated(role: Object, roles: Collection[Object]) -> list[Object]:
    """Its rules out of `roles`, in the order of its selectors and their names, each rule once.

    Raises ValueError for a selector that cannot be read.
    """
    rules: list[Object] = []
    for given in role["aggregationRule"].get("clusterRoleSelectors") or ():
        selector = LabelSelector.from_object(given)
        for other in sorted(roles, key=_name):
            if _name(other) == _name(role) or not selector.matches(other["metadata"].get("labels") or {}):
                continue
            rules += [rule for rule in other.get("rules") or () if rule not in rules]
    return rules


def _name(role: Object) -> str:
    name: str = role["metadata"]["name"]
    return name
