"""Carries out what stateful_pods.py decides: pods with an identity, their claims, their revisions.

Names are fixed, so the API itself refuses a second pod of one identity: a cache that lags behind can do no
harm, and no expectations are needed. Nothing is ever deleted by force here. Source: upstream's
pkg/controller/statefulset and pkg/controller/history.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from controlplane.controllers import stateful_pods
from controlplane.controllers.base import (
    Controller,
    Object,
    SharedInformers,
    controller_of,
    key_of,
    split_key,
)
from controlplane.controllers.pod_ownership import owner_reference
from controlplane.controllers.pod_readiness import available_in
from controlplane.controllers.revisions import Revisions
from kubeclient.errors import AlreadyExists, ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import (
    CONTROLLER_REVISIONS,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    STATEFUL_SETS,
    Resource,
)
from kubeclient.rest import RestClient
from kubeclient.selectors import LabelSelector

HASH = "controller.kubernetes.io/hash"


class StatefulSets(Controller):
    name = "statefulset"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._sets = informers.of(STATEFUL_SETS, self.enqueue)
        self._pods = informers.of(PODS, self._on_pod)
        self._claims = informers.of(PERSISTENT_VOLUME_CLAIMS)
        revisions = informers.of(CONTROLLER_REVISIONS)
        self._history = Revisions(client, revisions, STATEFUL_SETS, HASH)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        reference = controller_of(new)
        if reference is not None and reference["kind"] == "StatefulSet":
            self.queue.add(f"{new['metadata']['namespace']}/{reference['name']}")
        elif reference is None and kind != "DELETED":
            name = new["metadata"]["name"].rpartition("-")[0]
            if self._sets.get(name, new["metadata"]["namespace"]) is not None:
                self.queue.add(f"{new['metadata']['namespace']}/{name}")

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        found = self._sets.get(name, namespace)
        if found is None or found["metadata"].get("deletionTimestamp"):
            return
        pods = self._claim(found)
        revisions = self._history.owned(found)
        update = self._history.ensure(found, revisions)
        current = (found.get("status") or {}).get("currentRevision") or update["metadata"]["name"]
        templates = {r["metadata"]["name"]: r["data"]["spec"]["template"] for r in [*revisions, update]}
        if current not in templates:
            current = update["metadata"]["name"]
        now, updated = self._clock(), update["metadata"]["name"]
        # The status first: it says what is seen, not what is about to be done.
        self._write_status(found, stateful_pods.status(found, [*pods.values()], current, updated, now))
        self._keep_claims(found, pods)
        todo = stateful_pods.plan(found, pods, updated, now)
        for ordinal in todo.create:
            chosen = stateful_pods.revision_for(found, ordinal, current, updated)
            self._create(found, key, ordinal, chosen, templates[chosen])
        for pod in todo.delete:
            self._delete(found, pod)
        live = {current, updated, *map(stateful_pods.revision_of, pods.values())}
        self._history.truncate(found, revisions, live)
        quiet = int(found["spec"].get("minReadySeconds", 0))
        waits = [wait for pod in pods.values() if (wait := available_in(pod, quiet, now))]
        if waits:
            self.queue.add_after(key, min(waits))

    # pods

    def _claim(self, found: Object) -> dict[int, Object]:
        """The set's pods by ordinal; an orphan that has the name and the labels of one is adopted."""
        metadata = found["metadata"]
        selector = LabelSelector.from_object(found["spec"]["selector"])
        pods = {}
        for pod in self._pods.list():
            if pod["metadata"]["namespace"] != metadata["namespace"]:
                continue
            ordinal = stateful_pods.ordinal_of(metadata["name"], pod["metadata"]["name"])
            reference = controller_of(pod)
            if ordinal is None or not selector.matches(pod["metadata"].get("labels") or {}):
                continue
            if reference is None and not stateful_pods.ending(pod):
                self._adopt(found, pod)
            elif reference is None or reference["uid"] != metadata["uid"]:
                continue
            pods[ordinal] = pod
        return pods

    def _adopt(self, found: Object, pod: Object) -> None:
        owner = owner_reference(found, STATEFUL_SETS)
        owners = [*(pod["metadata"].get("ownerReferences") or []), owner]
        metadata = {"uid": pod["metadata"]["uid"], "ownerReferences": owners}
        self._patch(PODS, pod, {"metadata": metadata})

    def _create(self, found: Object, key: str, ordinal: int, revision: str, template: Object) -> None:
        namespace, name = found["metadata"]["namespace"], found["metadata"]["name"]
        body = stateful_pods.make_pod(found, template, ordinal, revision)
        text = f"create Pod {body['metadata']['name']} in StatefulSet {name}"
        try:
            for claim in stateful_pods.make_claims(found, ordinal):
                self._create_claim(found, body["metadata"]["name"], claim)
            self.client.create(PODS, body, namespace)
        except AlreadyExists:
            # Ours, which our copy has not shown yet, or a stranger's: then its end is what we wait for.
            self.queue.add_after(key, 1.0)
            return
        except ApiError as error:
            if any(cause.get("reason") == "NamespaceTerminating" for cause in error.causes):
                return
            self.recorder.event(found, "Warning", "FailedCreate", f"{text} failed error: {error}")
            raise
        self.recorder.event(found, "Normal", "SuccessfulCreate", f"{text} successful")

    def _delete(self, found: Object, pod: Object) -> None:
        metadata = pod["metadata"]
        phase = (pod.get("status") or {}).get("phase")
        if phase in ("Failed", "Succeeded"):
            text = f"StatefulSet {key_of(found)} is recreating {phase} Pod {metadata['name']}"
            self.recorder.event(found, "Warning", f"Recreating{phase}Pod", text)
        text = f"delete Pod {metadata['name']} in StatefulSet {found['metadata']['name']}"
        try:
            self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (NotFound, Conflict):
            return
        except ApiError as error:
            self.recorder.event(found, "Warning", "FailedDelete", f"{text} failed error: {error}")
            raise
        self.recorder.event(found, "Normal", "SuccessfulDelete", f"{text} successful")

    # claims

    def _create_claim(self, found: Object, pod: str, claim: Object) -> None:
        namespace, name = found["metadata"]["namespace"], claim["metadata"]["name"]
        if self._claims.get(name, namespace) is not None:
            return
        text = f"create Claim {name} Pod {pod} in StatefulSet {found['metadata']['name']}"
        try:
            self.client.create(PERSISTENT_VOLUME_CLAIMS, claim, namespace)
        except AlreadyExists:
            return
        self.recorder.event(found, "Normal", "SuccessfulCreate", f"{text} success")

    def _keep_claims(self, found: Object, pods: dict[int, Object]) -> None:
        """Give the claims of each pod the owner that their retention policy asks for, or none."""
        ours = {found["metadata"]["uid"], *(pod["metadata"]["uid"] for pod in pods.values())}
        for ordinal, pod in pods.items():
            owner = stateful_pods.claim_owner(found, ordinal, pod)
            for wanted in stateful_pods.make_claims(found, ordinal):
                claim = self._claims.get(wanted["metadata"]["name"], found["metadata"]["namespace"])
                if claim is None:
                    continue
                present = claim["metadata"].get("ownerReferences") or []
                kept = [r for r in present if r["uid"] not in ours]
                owners = kept + ([owner] if owner is not None else [])
                if {r["uid"] for r in owners} != {r["uid"] for r in present}:
                    metadata = {"uid": claim["metadata"]["uid"], "ownerReferences": owners}
                    self._patch(PERSISTENT_VOLUME_CLAIMS, claim, {"metadata": metadata})

    # writing

    def _write_status(self, found: Object, status: Object) -> None:
        old = found.get("status") or {}
        if all(old.get(name, 0) == value for name, value in status.items()) and set(old) <= set(status):
            return
        try:
            self.client.update(STATEFUL_SETS, found | {"status": status}, subresource="status")
        except NotFound:
            return

    def _patch(self, resource: Resource, obj: Object, body: Object) -> None:
        metadata = obj["metadata"]
        try:
            self.client.patch(resource, metadata["name"], body, metadata["namespace"], kind="merge")
        except (NotFound, Conflict):
            return
