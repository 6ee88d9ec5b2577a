"""Former pod templates of StatefulSets and DaemonSets, as ControllerRevisions: `kubectl rollout` reads them.

A revision is named after the hash of its template; the number counts up, and going back to an old template
gives that one the highest number again. Source: upstream's pkg/controller/history.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.controllers.base import Object, controller_of
from controlplane.controllers.pod_ownership import owner_reference
from controlplane.controllers.rollout import template_hash
from kubeclient.errors import AlreadyExists, Conflict, NotFound
from kubeclient.informer import Informer
from kubeclient.resources import CONTROLLER_REVISIONS, Resource
from kubeclient.rest import RestClient


class Revisions:
    """Those of one kind's objects; `hash_label` is where a revision carries its template's hash."""

    def __init__(self, client: RestClient, known: Informer, resource: Resource, hash_label: str) -> None:
        self._client = client
        self._known = known
        self._resource = resource
        self._hash_label = hash_label

    def owned(self, owner: Object) -> list[Object]:
        """The object's revisions, oldest first."""
        found = [
            revision
            for revision in self._known.list()
            if revision["metadata"]["namespace"] == owner["metadata"]["namespace"]
            and (controller_of(revision) or {}).get("uid") == owner["metadata"]["uid"]
        ]
        return sorted(found, key=lambda r: int(r["revision"]))

    def ensure(self, owner: Object, revisions: Sequence[Object]) -> Object:
        """The revision of the present template, with the highest number: made, or brought forward.

        A name that is taken by another template counts `status.collisionCount` up and raises AlreadyExists.
        """
        template = owner["spec"]["template"]
        highest = int(revisions[-1]["revision"]) if revisions else 0
        for known in revisions:
            if template_of(known) == template:
                if int(known["revision"]) == highest:
                    return known
                number = {"revision": highest + 1}
                name, namespace = known["metadata"]["name"], known["metadata"]["namespace"]
                return self._client.patch(CONTROLLER_REVISIONS, name, number, namespace, kind="merge")
        return self._make(owner, template, highest + 1)

    def _make(self, owner: Object, template: Object, number: int) -> Object:
        metadata = owner["metadata"]
        collisions = int((owner.get("status") or {}).get("collisionCount", 0))
        text = template_hash(template, collisions)
        labels = {**((template.get("metadata") or {}).get("labels") or {}), self._hash_label: text}
        name = f"{metadata['name']}-{text}"
        body = {
            "metadata": {
                "name": name,
                "labels": labels,
                "ownerReferences": [owner_reference(owner, self._resource)],
            },
            "data": {"spec": {"template": {**template, "$patch": "replace"}}},
            "revision": number,
        }
        try:
            return self._client.create(CONTROLLER_REVISIONS, body, metadata["namespace"])
        except AlreadyExists:
            present = self._client.get(CONTROLLER_REVISIONS, name, metadata["namespace"])
            ours = (controller_of(present) or {}).get("uid") == metadata["uid"]
            if ours and template_of(present) == template:
                return present
            self._count_collision(owner, collisions + 1)
            raise

    def _count_collision(self, owner: Object, count: int) -> None:
        metadata = owner["metadata"]
        body = {"status": {"collisionCount": count}}
        try:
            self._client.patch(
                self._resource,
                metadata["name"],
                body,
                metadata["namespace"],
                subresource="status",
                kind="merge",
            )
        except (NotFound, Conflict):
            return

    def truncate(self, owner: Object, revisions: Sequence[Object], live: set[str]) -> None:
        """Keep only so many old revisions as the object asks for; those named in `live` are not old."""
        old = [r for r in revisions if r["metadata"]["name"] not in live]
        for revision in old[: max(0, len(old) - int(owner["spec"].get("revisionHistoryLimit", 10)))]:
            metadata = revision["metadata"]
            try:
                self._client.delete(CONTROLLER_REVISIONS, metadata["name"], metadata["namespace"])
            except NotFound:
                continue


def template_of(revision: Object) -> Object:
    """The pod template that a revision keeps."""
    template: Object = revision["data"]["spec"]["template"]
    return {key: value for key, value in template.items() if key != "$patch"}
