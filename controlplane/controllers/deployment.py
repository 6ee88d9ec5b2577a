"""Rolls a Deployment's pod template out over ReplicaSets, one revision each.

Every template gets a ReplicaSet named after its hash; how many pods each has is decided in rollout.py, one
step per call. Revisions, conditions, reasons and messages are upstream's: `kubectl rollout` reads them.
Source: upstream's deployment controller (sync.go, rolling.go, progress.go).
"""

from __future__ import annotations

import copy
import logging
import time
from datetime import UTC, datetime
from typing import Any

from controlplane.controllers import rollout
from controlplane.controllers.base import Controller, Object, SharedInformers, controller_of, split_key
from controlplane.controllers.rollout import HASH_LABEL, SetView
from controlplane.controllers.stamps import seconds
from kubeclient.errors import AlreadyExists, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from kubeclient.rest import RestClient
from kubeclient.selectors import LabelSelector

log = logging.getLogger("controllers")

REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
BEHIND_SECONDS = 0.01
NOT_COPIED = {"kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MAXIMUM}


class Deployments(Controller):
    name = "deployment"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._written: dict[str, int] = {}  # ReplicaSet uid → resourceVersion of our last write
        self._deployments = informers.of(DEPLOYMENTS, self.enqueue)
        self._sets = informers.of(REPLICA_SETS, self._on_set)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_set(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._written.pop(new["metadata"]["uid"], None)
        reference = controller_of(new)
        if reference is not None and reference["kind"] == "Deployment":
            self.queue.add(f"{new['metadata']['namespace']}/{reference['name']}")
        elif reference is None and kind != "DELETED":
            for deployment in self._deployments.list():
                if deployment["metadata"]["namespace"] == new["metadata"]["namespace"]:
                    self.enqueue(kind, deployment)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        """Recreate waits for the last old pod to be gone."""
        reference = controller_of(new)
        if kind != "DELETED" or reference is None or reference["kind"] != "ReplicaSet":
            return
        replica_set = self._sets.get(reference["name"], new["metadata"]["namespace"])
        if replica_set is not None:
            self._on_set("MODIFIED", replica_set, None)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        deployment = self._deployments.get(name, namespace)
        if deployment is None:
            return
        sets = self._claim(deployment)
        if self._behind(sets):
            # Deciding again on sizes that we have just changed would share replicas out twice.
            self.queue.add_after(key, BEHIND_SECONDS)
            return
        if deployment["metadata"].get("deletionTimestamp"):
            self._update_status(deployment, key, self._newest(deployment, sets), sets)
            return
        new = self._newest(deployment, sets)
        old = [s for s in sets if new is None or s["metadata"]["uid"] != new["metadata"]["uid"]]
        if deployment["spec"].get("paused"):
            self._scale_proportionally(deployment, sets)
        elif self._scaled_meanwhile(deployment, sets):
            if not self._scale_proportionally(deployment, sets):
                self._annotate_all(deployment, sets)
        else:
            new = self._ensure_new(deployment, new, old)
            if new is None:
                return
            sets = [new, *old]
            self._step(deployment, new, old)
            self._clean_up(deployment, new, old)
        self._update_status(deployment, key, new, sets)

    def _behind(self, sets: list[Object]) -> bool:
        """Whether the cache still shows a set as it was before our own last write to it."""
        return any(
            int(s["metadata"]["resourceVersion"]) < self._written.get(s["metadata"]["uid"], 0) for s in sets
        )

    def _claim(self, deployment: Object) -> list[Object]:
        """ReplicaSets that the Deployment controls; matching orphans are adopted."""
        metadata = deployment["metadata"]
        selector = LabelSelector.from_object(deployment["spec"]["selector"])
        claimed = []
        for replica_set in self._sets.list():
            if replica_set["metadata"]["namespace"] != metadata["namespace"]:
                continue
            reference = controller_of(replica_set)
            if reference is not None and reference["uid"] == metadata["uid"]:
                claimed.append(replica_set)
            elif (
                reference is None
                and not metadata.get("deletionTimestamp")
                and selector.matches(replica_set["metadata"].get("labels") or {})
            ):
                self._adopt(deployment, replica_set)
        return claimed

    def _adopt(self, deployment: Object, replica_set: Object) -> None:
        owners = [*(replica_set["metadata"].get("ownerReferences") or []), _reference(deployment)]
        metadata = {"uid": replica_set["metadata"]["uid"], "ownerReferences": owners}
        namespace = deployment["metadata"]["namespace"]
        try:
            self.client.patch(
                REPLICA_SETS, replica_set["metadata"]["name"], {"metadata": metadata}, namespace, kind="merge"
            )
        except (NotFound, Conflict):
            return

    @staticmethod
    def _newest(deployment: Object, sets: list[Object]) -> Object | None:
        """The oldest ReplicaSet with the Deployment's present template, as upstream chooses."""
        template = deployment["spec"]["template"]
        same = [s for s in sets if rollout.same_template(s["spec"]["template"], template)]
        return min(
            same, key=lambda s: (s["metadata"]["creationTimestamp"], s["metadata"]["name"]), default=None
        )

    @staticmethod
    def _scaled_meanwhile(deployment: Object, sets: list[Object]) -> bool:
        """Whether `replicas` changed since the sets were last sized: then scale before rolling on."""
        desired = str(deployment["spec"].get("replicas", 1))
        for replica_set in sets:
            known = (replica_set["metadata"].get("annotations") or {}).get(DESIRED)
            if replica_set["spec"].get("replicas") and known is not None and known != desired:
                return True
        return False

    def _ensure_new(self, deployment: Object, new: Object | None, old: list[Object]) -> Object | None:
        revision = max((_revision(s) for s in old), default=0) + 1
        if new is None:
            return self._create_set(deployment, old, revision)
        # An undo brings an old template back: its set becomes the newest revision.
        number = max(_revision(new), revision)
        wanted = self._annotations(deployment, number, new)
        present = new["metadata"].get("annotations") or {}
        if any(present.get(name) != value for name, value in wanted.items()):
            new = self._patch_set(new, {"metadata": {"annotations": wanted}}) or new
        self._set_revision(deployment, number)
        return new

    def _create_set(self, deployment: Object, old: list[Object], revision: int) -> Object | None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        collisions = int((deployment.get("status") or {}).get("collisionCount", 0))
        text = rollout.template_hash(spec["template"], collisions)
        template = copy.deepcopy(spec["template"])
        template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = text
        selector = copy.deepcopy(spec["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = text
        body: Object = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{metadata['name']}-{text}",
                "labels": template["metadata"]["labels"],
                "annotations": self._annotations(deployment, revision, None),
                "ownerReferences": [_reference(deployment)],
            },
            "spec": {
                "replicas": self._first_size(spec, old),
                "minReadySeconds": int(spec.get("minReadySeconds", 0)),
                "selector": selector,
                "template": template,
            },
        }
        try:
            made = self.client.create(REPLICA_SETS, body, metadata["namespace"])
        except AlreadyExists:
            self._collided(deployment, body["metadata"]["name"])
            return None
        size = made["spec"]["replicas"]
        if size:
            self._said_scaled(deployment, made["metadata"]["name"], 0, size)
        self._set_revision(deployment, revision)
        return made

    @staticmethod
    def _first_size(spec: Object, old: list[Object]) -> int:
        replicas = int(spec.get("replicas", 1))
        taken = sum(int(s["spec"].get("replicas", 0)) for s in old)
        if (spec.get("strategy") or {}).get("type") == "Recreate":
            return 0 if taken else replicas
        surge, _ = rollout.bounds(spec)
        return max(0, min(replicas, replicas + surge - taken))

    def _collided(self, deployment: Object, name: str) -> None:
        """A set of that name has another template: count the collision, so that the next hash differs."""
        live = self.client.get(REPLICA_SETS, name, deployment["metadata"]["namespace"])
        reference = controller_of(live)
        ours = reference is not None and reference["uid"] == deployment["metadata"]["uid"]
        if ours and rollout.same_template(live["spec"]["template"], deployment["spec"]["template"]):
            return  # our cache was behind
        status = dict(deployment.get("status") or {})
        status["collisionCount"] = int(status.get("collisionCount", 0)) + 1
        self.client.update(DEPLOYMENTS, deployment | {"status": status}, subresource="status")

    @staticmethod
    def _annotations(deployment: Object, revision: int, present: Object | None) -> dict[str, str]:
        """What the set carries for kubectl and for proportional scaling."""
        spec = deployment["spec"]
        replicas = int(spec.get("replicas", 1))
        own = deployment["metadata"].get("annotations") or {}
        wanted = {name: value for name, value in own.items() if name not in NOT_COPIED}
        surge = 0 if (spec.get("strategy") or {}).get("type") == "Recreate" else rollout.bounds(spec)[0]
        wanted |= {REVISION: str(revision), DESIRED: str(replicas), MAXIMUM: str(replicas + surge)}
        before = (present["metadata"].get("annotations") or {}) if present else {}
        if before.get(REVISION) and before[REVISION] != str(revision):
            history = [*filter(None, before.get(HISTORY, "").split(",")), before[REVISION]]
            wanted[HISTORY] = ",".join(history)
        return wanted

    def _set_revision(self, deployment: Object, revision: int) -> None:
        present = (deployment["metadata"].get("annotations") or {}).get(REVISION)
        if present == str(revision):
            return
        metadata = deployment["metadata"]
        body = {"metadata": {"annotations": {REVISION: str(revision)}}}
        # By way of the status, as upstream: a change from the other side would count as a new generation.
        patched = self.client.patch(
            DEPLOYMENTS, metadata["name"], body, metadata["namespace"], kind="merge", subresource="status"
        )
        deployment["metadata"] = patched["metadata"]

    def _step(self, deployment: Object, new: Object, old: list[Object]) -> None:
        spec = deployment["spec"]
        views = [_view(s) for s in old]
        if (spec.get("strategy") or {}).get("type") == "Recreate":
            changes = rollout.recreate(spec, _view(new), views, self._pods_of(old))
        else:
            changes = rollout.rolling_update(spec, _view(new), views)
        by_name = {s["metadata"]["name"]: s for s in [new, *old]}
        for name, size in changes.items():
            self._scale(deployment, by_name[name], size)

    def _pods_of(self, sets: list[Object]) -> int:
        """Pods of these sets that still run or end, which their status no longer counts."""
        uids = {s["metadata"]["uid"] for s in sets}
        owned = [controller_of(pod) for pod in self._pods.list() if _unfinished(pod)]
        return sum(1 for reference in owned if reference is not None and reference["uid"] in uids)

    def _scale_proportionally(self, deployment: Object, sets: list[Object]) -> bool:
        surge = 0
        if (deployment["spec"].get("strategy") or {}).get("type") != "Recreate":
            surge = rollout.bounds(deployment["spec"])[0]
        replicas = int(deployment["spec"].get("replicas", 1))
        views = [_view(s) for s in sets]
        changes = rollout.proportional(replicas, surge, views)
        if not any(view.wanted for view in views) and replicas:
            newest = self._newest(deployment, sets) or max(sets, key=_revision, default=None)
            changes = {newest["metadata"]["name"]: replicas} if newest else {}
        by_name = {s["metadata"]["name"]: s for s in sets}
        for name, size in changes.items():
            self._scale(deployment, by_name[name], size)
        return bool(changes)

    def _annotate_all(self, deployment: Object, sets: list[Object]) -> None:
        for replica_set in sets:
            wanted = self._annotations(deployment, _revision(replica_set), replica_set)
            wanted = {name: wanted[name] for name in (DESIRED, MAXIMUM)}
            self._patch_set(replica_set, {"metadata": {"annotations": wanted}})

    def _scale(self, deployment: Object, replica_set: Object, size: int) -> None:
        before = int(replica_set["spec"].get("replicas", 0))
        if before == size:
            return
        wanted = self._annotations(deployment, _revision(replica_set), replica_set)
        annotations = {name: wanted[name] for name in (DESIRED, MAXIMUM)}
        body = {
            "metadata": {
                "annotations": annotations,
                "resourceVersion": replica_set["metadata"]["resourceVersion"],
            },
            "spec": {"replicas": size},
        }
        if self._patch_set(replica_set, body) is not None:
            self._said_scaled(deployment, replica_set["metadata"]["name"], before, size)

    def _said_scaled(self, deployment: Object, name: str, before: int, after: int) -> None:
        way = "up" if after > before else "down"
        message = f"Scaled {way} replica set {name} from {before} to {after}"
        self.recorder.event(deployment, "Normal", "ScalingReplicaSet", message)

    def _patch_set(self, replica_set: Object, body: Object) -> Object | None:
        metadata = replica_set["metadata"]
        try:
            patched = self.client.patch(
                REPLICA_SETS, metadata["name"], body, metadata["namespace"], kind="merge"
            )
        except NotFound:
            return None
        self._written[metadata["uid"]] = int(patched["metadata"]["resourceVersion"])
        return patched

    def _clean_up(self, deployment: Object, new: Object, old: list[Object]) -> None:
        """Keep the last `revisionHistoryLimit` empty old sets, for undo."""
        if not _complete(deployment, _view(new), [_view(s) for s in old]):
            return
        limit = int(deployment["spec"].get("revisionHistoryLimit", 10))
        empty = [
            s for s in old if not s["spec"].get("replicas") and not (s.get("status") or {}).get("replicas")
        ]
        for replica_set in sorted(empty, key=_revision)[: max(0, len(empty) - limit)]:
            metadata = replica_set["metadata"]
            try:
                self.client.delete(REPLICA_SETS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except (NotFound, Conflict):
                continue

    def _update_status(self, deployment: Object, key: str, new: Object | None, sets: list[Object]) -> None:
        old_status = deployment.get("status") or {}
        views = [_view(s) for s in sets]
        updated = _view(new) if new is not None else None
        wanted = int(deployment["spec"].get("replicas", 1))
        available = sum(view.available for view in views)
        status: Object = {
            "observedGeneration": deployment["metadata"].get("generation", 0),
            "replicas": sum(view.replicas for view in views),
            "updatedReplicas": updated.replicas if updated else 0,
            "readyReplicas": sum(view.ready for view in views),
            "availableReplicas": available,
            "unavailableReplicas": max(0, sum(view.wanted for view in views) - available),
        }
        status = {name: value for name, value in status.items() if value}
        if "collisionCount" in old_status:
            status["collisionCount"] = old_status["collisionCount"]
        conditions = [self._availability(deployment, available, wanted), *self._failures(sets)]
        progress = self._progress(deployment, key, new, status, views)
        status["conditions"] = _merge(old_status.get("conditions") or [], [*conditions, *progress])
        if status != old_status:
            try:
                self.client.update(DEPLOYMENTS, deployment | {"status": status}, subresource="status")
            except NotFound:
                return

    @staticmethod
    def _availability(deployment: Object, available: int, wanted: int) -> Object:
        unavailable = 0
        if (deployment["spec"].get("strategy") or {}).get("type") != "Recreate":
            unavailable = rollout.bounds(deployment["spec"])[1]
        if available >= wanted - unavailable:
            message = "Deployment has minimum availability."
            return _condition("Available", "True", "MinimumReplicasAvailable", message)
        message = "Deployment does not have minimum availability."
        return _condition("Available", "False", "MinimumReplicasUnavailable", message)

    @staticmethod
    def _failures(sets: list[Object]) -> list[Object]:
        for replica_set in sets:
            for condition in (replica_set.get("status") or {}).get("conditions") or []:
                if condition["type"] == "ReplicaFailure":
                    return [_condition("ReplicaFailure", "True", condition["reason"], condition["message"])]
        return []

    def _progress(
        self, deployment: Object, key: str, new: Object | None, status: Object, views: list[SetView]
    ) -> list[Object]:
        name = (
            f'ReplicaSet "{new["metadata"]["name"]}"'
            if new
            else f'Deployment "{deployment["metadata"]["name"]}"'
        )
        old_status = deployment.get("status") or {}
        before = next((c for c in old_status.get("conditions") or [] if c["type"] == "Progressing"), None)
        if deployment["spec"].get("paused"):
            return [_condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused")]
        if new is not None and _complete(
            deployment, _view(new), [v for v in views if v.name != new["metadata"]["name"]]
        ):
            message = f"{name} has successfully progressed."
            return [_condition("Progressing", "True", "NewReplicaSetAvailable", message)]
        moved = any(
            status.get(field, 0) != old_status.get(field, 0)
            for field in ("updatedReplicas", "readyReplicas", "availableReplicas", "replicas")
        )
        deadline = int(deployment["spec"].get("progressDeadlineSeconds", 600))
        if before is None or moved or before["reason"] == "NewReplicaSetAvailable":
            self.queue.add_after(key, deadline + 1.0)
            return [
                _condition("Progressing", "True", "ReplicaSetUpdated", f"{name} is progressing.", moved=True)
            ]
        left = deadline - (time.time() - seconds(before["lastUpdateTime"]))
        if left < 0:
            message = f"{name} has timed out progressing."
            return [_condition("Progressing", "False", "ProgressDeadlineExceeded", message)]
        self.queue.add_after(key, left + 1.0)
        return [before]


def _reference(deployment: Object) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
        "uid": deployment["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _revision(replica_set: Object) -> int:
    return int((replica_set["metadata"].get("annotations") or {}).get(REVISION, "0") or 0)


def _view(replica_set: Object) -> SetView:
    status = replica_set.get("status") or {}
    return SetView(
        name=replica_set["metadata"]["name"],
        wanted=int(replica_set["spec"].get("replicas", 1)),
        ready=int(status.get("readyReplicas", 0)),
        available=int(status.get("availableReplicas", 0)),
        replicas=int(status.get("replicas", 0)),
        created=replica_set["metadata"].get("creationTimestamp", ""),
        maximum=int((replica_set["metadata"].get("annotations") or {}).get(MAXIMUM, "0") or 0),
    )


def _complete(deployment: Object, new: SetView, old: list[SetView]) -> bool:
    replicas = int(deployment["spec"].get("replicas", 1))
    settled = new.wanted == new.replicas == new.available == replicas
    return settled and not any(view.replicas or view.wanted for view in old)


def _unfinished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def _condition(kind: str, status: str, reason: str, message: str, *, moved: bool = False) -> Object:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition: dict[str, Any] = {"type": kind, "status": status, "reason": reason, "message": message}
    condition |= {"lastUpdateTime": now, "lastTransitionTime": now}
    return condition | ({"moved": True} if moved else {})


def _merge(before: list[Object], now: list[Object]) -> list[Object]:
    """New conditions with the times of old ones that say the same; `moved` ones get a new update time."""
    known = {c["type"]: c for c in before}
    merged = []
    for condition in now:
        moved = condition.pop("moved", False)
        old = known.get(condition["type"])
        if old is not None and old["status"] == condition["status"]:
            condition["lastTransitionTime"] = old["lastTransitionTime"]
            same = old["reason"] == condition["reason"] and old["message"] == condition["message"]
            if same and not moved:
                condition["lastUpdateTime"] = old["lastUpdateTime"]
        merged.append(condition)
    return merged
