"""Keeps the rules of aggregated ClusterRoles as those of the roles that their selectors find.

Which role finds which is not written down anywhere, so a change of any role looks at all that aggregate:
there are few. One that aggregates may itself be found ("edit" by "admin"); its new rules are such a change.
Source: upstream's pkg/controller/clusterroleaggregation.
"""

from __future__ import annotations

import logging

from controlplane.controllers.base import Controller, Object, SharedInformers, key_of, split_key
from controlplane.role_aggregation import aggregated, aggregates
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import CLUSTER_ROLES
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")


class ClusterRoles(Controller):
    name = "cluster-role-aggregation"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._roles = informers.of(CLUSTER_ROLES, self._changed)

    def sync(self, key: str) -> None:
        role = self._roles.get(split_key(key)[1])
        if role is None or not aggregates(role) or role["metadata"].get("deletionTimestamp"):
            return
        try:
            rules = aggregated(role, self._roles.list())
        except ValueError as error:  # stored before selectors were checked
            log.warning("Left an aggregated role as it is name=%s error=%s", key, error)
            return
        if rules == (role.get("rules") or []):
            return
        try:
            self.client.update(CLUSTER_ROLES, {**role, "rules": rules})
        except NotFound:
            return

    def _changed(self, kind: str, new: Object, old: Object | None) -> None:
        for role in self._roles.list():
            if aggregates(role):
                self.queue.add(key_of(role))
