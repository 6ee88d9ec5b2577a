"""Keeps the Node object and its Lease: registers, reports, renews. Source: upstream's kubelet_node_status.go.

The Lease is the heartbeat (small, renewed each quarter of its duration); the Node's status is sent when it
changes, and every five minutes in any case. What the control plane wrote over it while it did not hear of
the node (conditions Unknown) is corrected as soon as it is seen. A node that is deleted from the API while
its agent runs registers again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from kubeclient.errors import AlreadyExists, ApiError, Conflict, NotFound
from kubeclient.resources import LEASES, NODES
from kubeclient.rest import RestClient
from kubelet_py.config import Config
from kubelet_py.errors import AddressTaken
from kubelet_py.node import status as node_status
from kubelet_py.node.startup import StartupTimes
from kubelet_py.pods.model import Object

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
RENEW_SHARE = 0.25  # of the lease's duration, as upstream
RETRY_FIRST, RETRY_LONGEST = 0.05, 5.0


class Registrar:
    """`report(now, before)` builds the status to send; `on_node` sees every Node object that came back;
    `tell` gets (Normal, reason, message) for each condition that changed, and for a cordon; `admit` raises
    AddressTaken where the node must not register. `annotations` are kept as they are given; None is for one
    that must not be."""

    def __init__(
        self,
        client: RestClient,
        *,
        name: str,
        labels: dict[str, str],
        config: Config,
        report: Callable[[float, Object], Object],
        on_node: Callable[[Object], None],
        tell: Callable[[str, str, str], None] = lambda *_: None,
        admit: Callable[[], None] = lambda: None,
        annotations: Mapping[str, str | None] | None = None,
        startup: StartupTimes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._startup = startup or StartupTimes()
        self._client = client
        self._name = name
        self._labels = labels
        self._annotations = annotations or {}
        self._config = config
        self._report = report
        self._on_node = on_node
        self._tell = tell
        self._admit = admit
        self._refused = ""
        self._clock = clock
        self._node: Object | None = None
        self._sent_at = 0.0
        self._sent: Object | None = None  # what was reported last, while nobody wrote over it
        self._overwritten = False
        self._cordoned = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep_status, name="node-status", daemon=True),
            threading.Thread(target=self._keep_lease, name="node-lease", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def refresh(self) -> None:
        """Something that the status tells has changed: report it now."""
        self._wake.set()

    def seen(self, node: Object) -> None:
        """The API shows the Node like this. If it is not as we reported it, look there and correct it: this
        may also be how it was before our last report, which a watch tells late."""
        self._tell_cordon(bool((node.get("spec") or {}).get("unschedulable")))
        known = self._node
        if known is None:
            return
        if self._strays(node) or not node_status.same_report(node.get("status") or {}, known["status"]):
            self._overwritten = True
            self._wake.set()

    def deleted(self) -> None:
        """The API shows the Node no more. Look there: this may be a Node before the one that is there now."""
        self._overwritten = True
        self._wake.set()

    def node(self) -> Object | None:
        """The Node object as the API had it last."""
        return self._node

    def _keep_status(self) -> None:
        delay = RETRY_FIRST
        while not self._stopping.is_set():
            try:
                self._report_once()
                delay = RETRY_FIRST
                wait = self._config.node_status_update_frequency
            except AddressTaken as error:
                if str(error) != self._refused:
                    log.error("Refused to register node=%s reason=%s", self._name, error)
                self._refused = str(error)
                wait = RETRY_LONGEST
            except ApiError as error:
                level = logging.DEBUG if self._node is None else logging.WARNING
                log.log(level, "Failed to report node status error=%s", error)
                wait = delay
                delay = min(RETRY_LONGEST, delay * 2) if self._node is not None else RETRY_FIRST
            self._wake.wait(wait)
            self._wake.clear()

    def _report_once(self) -> None:
        if self._node is None:
            self._node = self._register()
            self._on_node(self._node)
        if self._overwritten:
            self._overwritten, self._sent = False, None
            self._node = self._read()
            if self._node is None:
                return
            self._refused = ""
            self._node = self._annotated(self._node)
        now = self._clock()
        before = self._node.get("status") or {}
        wanted = self._report(now, self._node)
        # An older API server drops what it does not know: its answer is not what we said.
        unchanged = node_status.same_report(before if self._sent is None else self._sent, wanted)
        # Either way: somebody may have set the clock back.
        if unchanged and abs(now - self._sent_at) < self._config.node_status_report_frequency:
            return
        try:
            patch = {"status": _patch_of(wanted)}
            self._node = self._client.patch(NODES, self._name, patch, subresource="status")
        except NotFound:
            self._register_again()
            return
        self._sent_at, self._sent = now, wanted
        self._note_ready(wanted)
        self._tell_changes(before, wanted)
        self._on_node(self._node)

    def _read(self) -> Object | None:
        try:
            return self._client.get(NODES, self._name)
        except NotFound:
            self._register_again()
            return None
        except ApiError:
            self._overwritten = True
            raise

    def _register_again(self) -> None:
        log.warning("Found node deleted, registered it again node=%s", self._name)
        self._node = self._sent = None
        self._wake.set()

    def _note_ready(self, sent: Object) -> None:
        if any(c["type"] == "Ready" and c["status"] == "True" for c in sent.get("conditions") or ()):
            self._startup.ready()

    def _tell_changes(self, before: Object, after: Object) -> None:
        old, new = before.get("conditions") or (), after.get("conditions") or ()
        for reason in node_status.condition_events(old, new):
            self._tell("Normal", reason, f"Node {self._name} status is now: {reason}")

    def _tell_cordon(self, cordoned: bool) -> None:
        """kubectl cordon and uncordon leave nothing but a field: the event says when (upstream:
        recordNodeSchedulableEvent)."""
        if cordoned != self._cordoned:
            self._cordoned = cordoned
            reason = "NodeNotSchedulable" if cordoned else "NodeSchedulable"
            self._tell("Normal", reason, f"Node {self._name} status is now: {reason}")

    def _register(self) -> Object:
        """Create the Node, its first status included, or take over the one that is there.

        Raises AddressTaken.
        """
        self._admit()
        if not self._config.register_node:
            return self._client.get(NODES, self._name)
        skeleton: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._name, "labels": self._labels},
            "spec": {},
        }
        notes = {key: value for key, value in self._annotations.items() if value is not None}
        if notes:
            skeleton["metadata"]["annotations"] = notes
        if self._config.register_with_taints:
            skeleton["spec"]["taints"] = [dict(taint) for taint in self._config.register_with_taints]
        if self._config.provider_id:
            skeleton["spec"]["providerID"] = self._config.provider_id
        body = {**skeleton, "status": self._report(self._clock(), skeleton)}
        self._startup.attempted()
        try:
            node = self._client.create(NODES, body)
            self._startup.registered()
            self._note_ready(body["status"])
            log.info("Registered node node=%s", self._name)
            self._tell_changes({}, body["status"])
        except AlreadyExists:
            node = self._client.get(NODES, self._name)
            present = node["metadata"].get("labels") or {}
            if any(present.get(key) != value for key, value in self._labels.items()):
                node = self._client.patch(NODES, self._name, {"metadata": {"labels": self._labels}})
            node = self._annotated(node)
            log.info("Found node registered node=%s", self._name)
        return node

    def _strays(self, node: Object) -> dict[str, str | None]:
        """The annotations that are not as they should be, with what they should be."""
        present = node["metadata"].get("annotations") or {}
        return {key: value for key, value in self._annotations.items() if present.get(key) != value}

    def _annotated(self, node: Object) -> Object:
        strays = self._strays(node)
        if not strays:
            return node
        return self._client.patch(NODES, self._name, {"metadata": {"annotations": strays}})

    def _keep_lease(self) -> None:
        lease: Object | None = None
        while not self._stopping.is_set():
            wait = RENEW_SHARE * self._config.node_lease_duration_seconds
            try:
                lease = self._renew(lease)
            except (Conflict, NotFound, AlreadyExists):
                lease, wait = None, RETRY_FIRST
            except ApiError as error:
                log.log(
                    logging.DEBUG if lease is None else logging.WARNING,
                    "Failed to renew lease error=%s",
                    error,
                )
                wait = 1.0 if lease is not None else RETRY_FIRST
            self._stopping.wait(wait)

    def _renew(self, lease: Object | None) -> Object:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if lease is not None:
            spec = {**lease["spec"], "renewTime": stamp}
            return self._client.update(LEASES, {**lease, "metadata": self._owned(lease), "spec": spec})
        try:
            found = self._client.get(LEASES, self._name, LEASE_NAMESPACE)
            body = {**found, "metadata": self._owned(found), "spec": self._lease_spec(stamp)}
            return self._client.update(LEASES, body)
        except NotFound:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": LEASE_NAMESPACE},
                "spec": self._lease_spec(stamp),
            }
            return self._client.create(LEASES, {**body, "metadata": self._owned(body)}, LEASE_NAMESPACE)

    def _owned(self, lease: Object) -> Object:
        """The lease's metadata, with the Node as its owner: it goes with it. The first lease may be older
        than the Node; then the next one says it."""
        metadata: Object = lease["metadata"]
        if self._node is None or metadata.get("ownerReferences"):
            return metadata
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._name}
        return {**metadata, "ownerReferences": [{**owner, "uid": self._node["metadata"]["uid"]}]}

    def _lease_spec(self, stamp: str) -> dict[str, Any]:
        return {
            "holderIdentity": self._name,
            "leaseDurationSeconds": self._config.node_lease_duration_seconds,
            "renewTime": stamp,
        }


def as_it_is_now(client: RestClient | None, name: str) -> Object | None:
    """The Node as the API has it at this moment; None when it cannot be asked."""
    if client is None:
        return None
    try:
        return client.get(NODES, name)
    except ApiError as error:
        log.info("Failed to read node=%s error=%s", name, error)
        return None


def _patch_of(status: Object) -> dict[str, Any]:
    """A strategic merge patch joins addresses by their type, and a node may have two of one type: as a whole,
    they take the place of those that were there (as upstream's fixupPatchForNodeStatusAddresses).
    """
    if not status.get("addresses"):
        return dict(status)
    return {**status, "addresses": [*status["addresses"], {"$patch": "replace"}]}
