"""A test that is tried a second time finds the API as its first try found it.

The node is the module's, so what a failed test made is still there, and the second try would fail on that
(pods cannot be applied with other fields), whatever the first one failed on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

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

What = tuple[Resource, str, str | None]  # its name and namespace


@dataclass(frozen=True, slots=True)
class Found:
    """What an API has, by uid; `cluster` is the uid of kube-system, which tells one cluster from the next."""

    cluster: str
    objects: dict[str, What]


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
    """Delete what the first try left, and wait until it is gone; only where it is known what was there: the
    node may be another one now, since a module whose end failed is set up again."""
    now = objects(node)
    if before is None or now is None or now.cluster != before.cluster:
        return
    deadline = time.monotonic() + PATIENCE
    client = RestClient(kubeconfig.load(node.kubeconfig), timeout=10.0)
    try:
        while new := [item for item in _objects(client).objects.items() if item[0] not in before.objects]:
            for uid, (kind, name, namespace) in new:
                _delete(client, kind, name, namespace, uid)
            assert time.monotonic() < deadline, f"the first try's objects do not go: {new}"
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
    cluster, found = "", dict[str, What]()
    for kind in KINDS:
        for item in client.list(kind)["items"]:
            metadata = item["metadata"]
            namespace, name = metadata.get("namespace"), metadata["name"]
            if kind is resources.NAMESPACES and name == SYSTEM:
                cluster = metadata["uid"]
            elif namespace != SYSTEM and name not in OWN:
                found[metadata["uid"]] = (kind, name, namespace)
    return Found(cluster, found)
