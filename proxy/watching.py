"""The informers of the proxy's process: what is watched, and who hears of it.

Both address families' changes and the name server listen to the same two watches, so that the API server
sends every object once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.changes import Changes
from proxy.config import ProxyConfig
from proxy.dns.records import Names
from proxy.errors import ProxyError
from proxy.policy.world import World

if TYPE_CHECKING:
    from kubeclient.informer import Handler, Informer
    from kubeclient.resources import Resource
    from kubeclient.rest import RestClient

log = logging.getLogger(__name__)

PATIENCE_WITH_NODE = 1.0


@dataclass(frozen=True, slots=True)
class Watching:
    """`needed` must be in before rules are made; `node` tells of our own zone, `policies` of NetworkPolicies:
    an API server may not let a proxy see either. `pods` starts what only policies need, and answers with it
    synced (None: told to stop meanwhile).
    """

    needed: Sequence[Informer]
    node: Informer
    policies: Informer
    pods: Callable[[], list[Informer] | None]

    def wait_synced(self, stop: threading.Event) -> bool:
        """True when the first lists are in; rules from half of the objects would refuse the other half.

        The node's zone only refines the choice, and an API server may not let us see it: not waited for
        long.
        """
        for informer in self.needed:
            while not informer.wait_synced(0.1):
                if stop.is_set():
                    return False
        if not self.node.wait_synced(PATIENCE_WITH_NODE):
            log.warning("Could not see this node yet consequence=topology-hints-ignored")
        return not stop.is_set()

    def stop(self) -> None:
        for informer in (*self.needed, self.node, self.policies):
            informer.stop()


def start(
    config: ProxyConfig,
    changes: Sequence[Changes],
    names: Names | None,
    world: World,
    stop: threading.Event,
    of_node: Sequence[Handler] = (),
) -> Watching | None:
    """Start all informers; None when told to stop before there is a kubeconfig and an API server.

    `of_node` hear of this node's object, too.
    """
    from kubeclient.informer import Informer
    from kubeclient.resources import NAMESPACES, NETWORK_POLICIES, NODES, PODS, SERVICES
    from proxy.slice_version import endpoint_slices

    client = connect(config, stop)
    slices = endpoint_slices(client, stop) if client else None
    if client is None or slices is None:
        return None

    def lean(resource: Resource, handler: Handler) -> Informer:
        return Informer(client, resource, on_event=handler, identities_only=True)

    of_services = [one.service_event for one in changes]
    of_slices = [one.slice_event for one in changes]
    needed = []
    if names is not None:
        of_services.append(names.service_event)
        of_slices.append(names.slice_event)
        needed.append(lean(NAMESPACES, names.namespace_event))
    needed.append(lean(SERVICES, _each(of_services)))
    needed.append(lean(slices, _each(of_slices)))
    policies = lean(NETWORK_POLICIES, world.policy_event)
    me = f"metadata.name={config.hostname}"
    told = [*(one.node_event for one in changes), world.node_event, *of_node]
    node = Informer(client, NODES, field_selector=me, on_event=_each(told))
    for informer in (*needed, node, policies):
        informer.start()

    def pods() -> list[Informer] | None:
        found = [lean(PODS, world.pod_event), lean(NAMESPACES, world.namespace_event)]
        for informer in found:
            informer.start()
        for informer in found:
            while not informer.wait_synced(0.1):
                if stop.is_set():
                    return None
        return found

    return Watching(needed, node, policies, pods)


def connect(config: ProxyConfig, stop: threading.Event) -> RestClient | None:
    """A client of the API server as soon as there is a kubeconfig; None when told to stop before."""
    # Imported here: --cleanup and every refusal to start can do without an HTTP client.
    from kubeclient.errors import ConfigError as ClientConfigError
    from kubeclient.kubeconfig import load
    from kubeclient.rest import RestClient

    path = Path(config.kubeconfig)
    if not _wait_for(path, stop):
        return None
    try:
        return RestClient(load(path), user_agent="kube-proxy")
    except ClientConfigError as error:
        raise ProxyError(str(error)) from error


def _wait_for(path: Path, stop: threading.Event) -> bool:
    waited = False
    while not path.exists():
        if not waited:
            log.info("Waiting for kubeconfig path=%s", path)
            waited = True
        if stop.wait(0.05):
            return False
    return True


def _each(handlers: Sequence[Handler]) -> Handler:
    """One handler that calls several."""

    def call(kind: str, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        for handler in handlers:
            handler(kind, new, old)

    return call
