"""A test that is tried a second time finds the API as its first try found it.

The node is the module's, so what a failed test made is still there, and the second try would fail on that
(pods cannot be applied with other fields), whatever the first one failed on.
"""

from __future__ import annotations

import time

from e2e_node import PATIENCE, Node

from kubeclient import kubeconfig, resources
from kubeclient.errors import ApiError, ConfigError, NotFound, ServerUnavailable
from kubeclient.resources import Resource
from kubeclient.rest import RestClient

# What makes others before what is made by them.
KINDS = (
    resources.CRON_JOBS, resources.JOBS, resources.DEPLOYMENTS, resources.DAEMON_SETS,
    resources.STATEFUL_SETS, resources.REPLICA_SETS, resources.PODS, resources.SERVICES,
    resources.CONFIG_MAPS, resources.SECRETS, resources.SERVICE_ACCOUNTS,
    resources.PERSISTENT_VOLUME_CLAIMS, resources.PERSISTENT_VOLUMES, resources.NETWORK_POLICIES,
    resources.POD_DISRUPTION_BUDGETS, resources.RUNTIME_CLASSES, resources.STORAGE_CLASSES,
    resources.PRIORITY_CLASSES, resources.RESOURCE_QUOTAS, resources.LIMIT_RANGES, resources.NAMESPACES,
)  # fmt: skip
# What the cluster makes by itself: all that is in kube-system, and in every namespace these.
SYSTEM, OWN = "kube-system", ("kube-root-ca.crt", "default", "kubernetes")

Found = dict[str, tuple[Resource, str, str | None]]  # by uid: what it is, its name and namespace


def objects(node: Node) -> Found | None:
    """What the API has now; None when there is none that answers."""
    try:
        client = RestClient(kubeconfig.load(node.kubeconfig), timeout=10.0)
    except (ConfigError, OSError):
        return None
    try:
        return _objects(client)
    except ServerUnavailable:
        return None
    finally:
        client.close()


def remove_new(node: Node, before: Found | None) -> None:
    """Delete what the first try left, and wait until it is gone; only where it is known what was there."""
    if before is None or objects(node) is None:
        return
    deadline = time.monotonic() + PATIENCE
    client = RestClient(kubeconfig.load(node.kubeconfig), timeout=10.0)
    try:
        while new := {uid: what for uid, what in _objects(client).items() if uid not in before}:
            for uid, (kind, name, namespace) in new.items():
                _delete(client, kind, name, namespace, uid)
            assert time.monotonic() < deadline, f"the first try's objects do not go: {list(new.values())}"
            time.sleep(0.1)
    finally:
        client.close()


def _delete(client: RestClient, kind: Resource, name: str, namespace: str | None, uid: str) -> None:
    try:
        client.delete(kind, name, namespace, grace_period_seconds=0, uid=uid)
    except NotFound:
        return
    except ApiError as error:
        print(f"second try: {kind.plural} {name}: {error}")  # what ends by itself, like a namespace under way


def _objects(client: RestClient) -> Found:
    found: Found = {}
    for kind in KINDS:
        for item in client.list(kind)["items"]:
            metadata = item["metadata"]
            if metadata.get("namespace") != SYSTEM and metadata["name"] not in OWN:
                found[metadata["uid"]] = (kind, metadata["name"], metadata.get("namespace"))
    return found
